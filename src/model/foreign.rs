//! Text that others wrote: keys and values in etcd, errors of etcd, configs, files, interface names, certificates.
//!
//! Such text enters messages through [`shown`], which makes every character visible and cuts what is too long. Whatever
//! leaves the daemon in a line-based protocol (log, sd_notify, `/readyz`, terminal) passes [`line`] once more, so a place
//! that forgets the first function still cannot forge a line.

use std::borrow::Cow;
use std::fmt::Write;

/// The longest text, in characters, that is quoted in the midst of a sentence.
pub const QUOTED: usize = 60;

/// The longest message of another program, in characters, that becomes part of ours.
pub const MESSAGE: usize = 1000;

/// `text` in one line, every character visible, with at most `most` characters of it; a longer one ends in its length.
/// Bytes that are not UTF-8 become U+FFFD.
pub fn shown(text: &(impl AsRef<[u8]> + ?Sized), most: usize) -> String {
    let bytes = text.as_ref();
    // A character has at most four bytes, and one that is broken at the end of the part is cut away below.
    let part = String::from_utf8_lossy(&bytes[..bytes.len().min(4 * (most + 1))]);
    match part.char_indices().nth(most) {
        Some((end, _)) => format!("{}... ({} bytes)", line(&part[..end]), bytes.len()),
        None => line(&part).into_owned(),
    }
}

/// `text` in one line: control characters, line breaks, terminal escapes, and characters that are invisible or change the
/// direction of writing are escaped as in `\n` and `\u{202e}`. Nothing is cut; a result is its own result.
pub fn line(text: &str) -> Cow<'_, str> {
    if text.chars().all(is_plain) {
        return text.into();
    }
    let mut out = String::with_capacity(text.len() + 16);
    for character in text.chars() {
        match is_plain(character) {
            true => out.push(character),
            // Writing to a String does not fail.
            false => drop(write!(out, "{}", character.escape_debug())),
        }
    }
    out.into()
}

/// Whether a character is visible by itself (a space counts) and stays in its line.
pub fn is_plain(character: char) -> bool {
    let visible = || matches!(character, '"' | '\'' | '\\') || character.escape_debug().len() == 1;
    matches!(character, ' '..='~') || visible()
}

/// The first character in `text` that no editor shows, other than line breaks and tabs, in words and with its place. Such
/// characters come along when text is copied from a web page or saved by some editors, and JSON does not allow them.
pub fn invisible(text: &str) -> Option<String> {
    let hidden = |character: char| !is_plain(character) && !matches!(character, '\n' | '\r' | '\t');
    let (at, character) = text.char_indices().find(|(_, character)| hidden(*character))?;
    let before = &text[..at];
    let row = before.matches('\n').count() + 1;
    let column = before.chars().rev().take_while(|character| *character != '\n').count() + 1;
    let name = match character {
        '\u{feff}' => "a byte order mark",
        '\u{a0}' => "a no-break space",
        '\u{200b}' => "a zero-width space",
        character if character.is_control() => "a control character",
        _ => "an invisible character",
    };
    Some(format!("{name} (U+{:04X}) at line {row}, column {column}", u32::from(character)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn whatever_could_forge_a_line_or_hide_is_escaped() {
        for (text, escaped) in [
            ("READY=1\nMAINPID=1", "READY=1\\nMAINPID=1"),
            ("a\r\tb", "a\\r\\tb"),
            ("\u{1b}[2J\u{9b}1m", "\\u{1b}[2J\\u{9b}1m"),
            ("\u{202e}evil\u{2066}", "\\u{202e}evil\\u{2066}"),
            ("\u{feff}{\u{a0}}\u{200b}", "\\u{feff}{\\u{a0}}\\u{200b}"),
            ("one\u{2028}two\u{2029}\u{85}", "one\\u{2028}two\\u{2029}\\u{85}"),
            ("\0\u{7f}", "\\0\\u{7f}"),
        ] {
            assert_eq!(line(text), escaped);
        }
        let plain = r#"{"Network": "10.5.0.0/16"} 'größe' \n 日本"#;
        assert!(matches!(line(plain), Cow::Borrowed(same) if same == plain));
    }

    #[test]
    fn what_is_too_long_is_cut_and_its_length_is_said() {
        assert_eq!(shown("short", 5), "short");
        assert_eq!(shown("longer", 5), "longe... (6 bytes)");
        assert_eq!(shown(&"é".repeat(1 << 20), 3), "ééé... (2097152 bytes)");
        assert_eq!(shown(b"\xff\n", 5), "\u{fffd}\\n");
    }

    #[test]
    fn an_invisible_character_is_named_with_its_place() {
        assert_eq!(invisible("\u{feff}{}").unwrap(), "a byte order mark (U+FEFF) at line 1, column 1");
        assert_eq!(invisible("{\n  \"a\":\u{a0}1\n}").unwrap(), "a no-break space (U+00A0) at line 2, column 7");
        assert_eq!(invisible("{\r\n\t}"), None);
    }

    proptest! {
        #[test]
        fn any_text_becomes_one_visible_line(bytes: Vec<u8>, most in 0usize..200) {
            let text = String::from_utf8_lossy(&bytes);
            for result in [line(&text).into_owned(), shown(&bytes, most), shown(&*text, most)] {
                prop_assert!(result.chars().all(is_plain), "{result:?}");
                prop_assert_eq!(&line(&result), &result);
            }
        }
    }
}
