//! Netlink's framing: splits received bytes into messages and reads acknowledgements.
//!
//! netlink-packet-route decodes the bodies. It neither decodes extended acknowledgements nor shows interrupted dumps.

use netlink_packet_core::{NLM_F_ACK_TLVS, NLM_F_CAPPED};

const HEADER: usize = 16;
const TYPE_NOOP: u16 = 1;
const TYPE_ERROR: u16 = 2;
const TYPE_DONE: u16 = 3;
/// `NLMSGERR_ATTR_MSG`: the kernel's explanation as text.
const ATTRIBUTE_TEXT: u16 = 1;
/// Marks nested and big-endian attributes.
const ATTRIBUTE_TYPE_MASK: u16 = 0x3fff;

/// Why the kernel refused one request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The positive errno.
    pub errno: i32,
    /// The kernel's explanation; often empty.
    pub explanation: String,
}

impl Refusal {
    /// A refusal without explanation.
    pub fn new(errno: i32) -> Self {
        Refusal { errno, explanation: String::new() }
    }
}

/// The kind of a received message.
#[derive(Debug, PartialEq, Eq)]
pub enum Kind {
    /// The answer to a request: success or the refusal.
    Answer(Result<(), Refusal>),
    /// The end of a dump, with its outcome.
    Done(Result<(), Refusal>),
    /// One object; [`Frame::bytes`] has the whole message.
    Object,
    /// A message without content.
    Noop,
}

/// One netlink message as received.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame<'a> {
    /// The whole message.
    pub bytes: &'a [u8],
    /// `NLM_F_*`.
    pub flags: u16,
    /// The sequence number of the request that this message answers.
    pub sequence: u32,
    message_type: u16,
}

impl<'a> Frame<'a> {
    /// Reads the message at the start of `bytes`; `None` if it is cut off or malformed.
    fn first(bytes: &'a [u8]) -> Option<Frame<'a>> {
        let length = u32_at(bytes, 0)? as usize;
        if length < HEADER {
            return None;
        }
        Some(Frame {
            message_type: u16_at(bytes, 4)?,
            flags: u16_at(bytes, 6)?,
            sequence: u32_at(bytes, 8)?,
            bytes: bytes.get(..length)?,
        })
    }

    /// The kind of the message.
    pub fn kind(&self) -> Kind {
        match self.message_type {
            TYPE_NOOP => Kind::Noop,
            TYPE_ERROR => Kind::Answer(self.outcome(self.request_length())),
            TYPE_DONE => Kind::Done(self.outcome(0)),
            _ => Kind::Object,
        }
    }

    /// The length of the request's copy that an acknowledgement carries.
    fn request_length(&self) -> usize {
        let whole = u32_at(self.bytes, HEADER + 4).map_or(HEADER, |length| aligned(length as usize));
        if self.flags & NLM_F_CAPPED != 0 { HEADER } else { whole }
    }

    /// An errno, then `skip` bytes, then attributes.
    fn outcome(&self, skip: usize) -> Result<(), Refusal> {
        let errno = u32_at(self.bytes, HEADER).map_or(0, |code| (code as i32).saturating_neg());
        if errno == 0 {
            return Ok(());
        }
        let explained = self.flags & NLM_F_ACK_TLVS != 0;
        let attributes = self.bytes.get(HEADER + 4 + skip..).filter(|_| explained).unwrap_or_default();
        Err(Refusal { errno, explanation: text_in(attributes).unwrap_or_default() })
    }
}

/// Splits `bytes` into messages. The last item is `None` if the rest is no message.
pub fn frames(bytes: &[u8]) -> impl Iterator<Item = Option<Frame<'_>>> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let frame = Frame::first(rest);
        rest = frame.and_then(|frame| rest.get(aligned(frame.bytes.len())..)).unwrap_or_default();
        Some(frame)
    })
}

fn text_in(mut attributes: &[u8]) -> Option<String> {
    loop {
        let length = usize::from(u16_at(attributes, 0)?);
        let kind = u16_at(attributes, 2)? & ATTRIBUTE_TYPE_MASK;
        let value = attributes.get(4..length)?;
        if kind == ATTRIBUTE_TEXT {
            return Some(String::from_utf8_lossy(value).trim_end_matches('\0').to_owned());
        }
        attributes = attributes.get(aligned(length)..)?;
    }
}

fn aligned(length: usize) -> usize {
    length.saturating_add(3) & !3
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..at + 2)?.try_into().ok().map(u16::from_ne_bytes)
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at + 4)?.try_into().ok().map(u32::from_ne_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn message(message_type: u16, flags: u16, sequence: u32, body: &[u8]) -> Vec<u8> {
        let mut bytes = ((HEADER + body.len()) as u32).to_ne_bytes().to_vec();
        bytes.extend(message_type.to_ne_bytes());
        bytes.extend(flags.to_ne_bytes());
        bytes.extend(sequence.to_ne_bytes());
        bytes.extend(0u32.to_ne_bytes());
        bytes.extend(body);
        bytes.resize(aligned(bytes.len()), 0);
        bytes
    }

    fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let mut bytes = ((4 + value.len()) as u16).to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(value);
        bytes.resize(aligned(bytes.len()), 0);
        bytes
    }

    fn kinds(bytes: &[u8]) -> Vec<Kind> {
        frames(bytes).map(|frame| frame.expect("a message").kind()).collect()
    }

    #[test]
    fn tells_answers_ends_and_objects_apart() {
        let ok = [0u32.to_ne_bytes(), 16u32.to_ne_bytes()].concat();
        let bytes = [message(2, 0, 1, &ok), message(28, 2, 2, &[1, 2, 3]), message(3, 2, 2, &[])].concat();
        assert_eq!(kinds(&bytes), [Kind::Answer(Ok(())), Kind::Object, Kind::Done(Ok(()))]);
        let sequences: Vec<u32> = frames(&bytes).flatten().map(|frame| frame.sequence).collect();
        assert_eq!(sequences, [1, 2, 2]);
    }

    #[test]
    fn reads_the_explanation_behind_a_capped_and_an_uncapped_request() {
        let attributes = [attribute(2, &8u32.to_ne_bytes()), attribute(1, b"Invalid gateway\0")].concat();
        let refused = Refusal { errno: 22, explanation: "Invalid gateway".to_owned() };
        let mut body = (-22i32).to_ne_bytes().to_vec();
        body.extend(message(24, 0, 7, &[]));
        body.extend(&attributes);
        assert_eq!(kinds(&message(2, NLM_F_CAPPED | NLM_F_ACK_TLVS, 7, &body)), [Kind::Answer(Err(refused.clone()))]);

        let mut body = (-22i32).to_ne_bytes().to_vec();
        body.extend(message(24, 0, 7, b"a request of some length"));
        body.extend(&attributes);
        assert_eq!(kinds(&message(2, NLM_F_ACK_TLVS, 7, &body)), [Kind::Answer(Err(refused.clone()))]);

        let body = [&(-22i32).to_ne_bytes(), &attributes[..]].concat();
        assert_eq!(kinds(&message(3, NLM_F_ACK_TLVS, 7, &body)), [Kind::Done(Err(refused))]);
    }

    #[test]
    fn without_the_flag_there_is_no_explanation() {
        let body = [(-17i32).to_ne_bytes().to_vec(), message(24, 0, 7, b"request")].concat();
        assert_eq!(kinds(&message(2, 0, 7, &body)), [Kind::Answer(Err(Refusal::new(17)))]);
    }

    #[test]
    fn a_message_that_is_cut_off_ends_it() {
        let bytes = [message(28, 0, 1, &[0; 8]), message(28, 0, 1, &[0; 8])[..20].to_vec()].concat();
        let found: Vec<bool> = frames(&bytes).map(|frame| frame.is_some()).collect();
        assert_eq!(found, [true, false]);
    }

    proptest! {
        #[test]
        fn any_bytes_give_messages_or_an_end(bytes in proptest::collection::vec(any::<u8>(), 0..200), flags: u16) {
            for frame in frames(&bytes).flatten() {
                frame.kind();
            }
            for wrapped in [message(2, flags, 1, &bytes), message(3, flags, 1, &bytes)] {
                prop_assert_eq!(kinds(&wrapped).len(), 1);
            }
        }
    }
}
