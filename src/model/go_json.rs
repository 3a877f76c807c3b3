//! JSON objects read the way Go's `encoding/json` reads them into a struct: keys match in any case, unknown keys
//! are ignored, the last of several wins, `null` leaves the default.

use super::foreign::{MESSAGE, QUOTED, shown};
use serde::de::{Deserialize, DeserializeOwned, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;
use std::fmt;

/// The members of one JSON object, in the order in which they stand in the text.
#[derive(Debug, Default, Clone)]
pub struct GoObject(Vec<(String, Box<RawValue>)>);

impl GoObject {
    /// Reads an object. The error says where the text stops being JSON, or that it is no object.
    pub fn parse(text: &[u8]) -> Result<Self, String> {
        serde_json::from_slice(text).map_err(|error| shown(&error.to_string(), MESSAGE))
    }

    /// The text of the last member whose name is `name` in any case, unless it is `null`.
    pub fn raw(&self, name: &str) -> Option<&str> {
        let mut named =
            self.0.iter().rev().filter(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.get());
        named.find(|text| *text != "null")
    }

    /// Whether the member is there, be it `null`.
    pub fn has(&self, name: &str) -> bool {
        self.0.iter().any(|(key, _)| key.eq_ignore_ascii_case(name))
    }

    /// The member as a value of `T`; `None` where it is absent or `null`.
    ///
    /// # Errors
    /// Names the key, its value (shortened) and what was expected.
    pub fn get<T: DeserializeOwned>(&self, name: &str, expected: &str) -> Result<Option<T>, String> {
        let Some(text) = self.raw(name) else { return Ok(None) };
        serde_json::from_str(text).map(Some).map_err(|_| format!("{name} is {}, not {expected}", shown(text, QUOTED)))
    }

    /// The member as an object; `None` where it is absent or `null`.
    pub fn object(&self, name: &str) -> Result<Option<GoObject>, String> {
        let Some(text) = self.raw(name) else { return Ok(None) };
        GoObject::parse(text.as_bytes())
            .map(Some)
            .map_err(|_| format!("{name} is {}, not an object", shown(text, QUOTED)))
    }
}

impl<'de> Deserialize<'de> for GoObject {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Members;
        impl<'de> Visitor<'de> for Members {
            type Value = GoObject;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a JSON object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<GoObject, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(GoObject(members))
            }
        }
        deserializer.deserialize_map(Members)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_in_any_case_and_the_last_wins() {
        let o = GoObject::parse(br#"{"NetWork":"a","x":{"y":[1]},"network":"b"}"#).unwrap();
        assert_eq!(o.get::<String>("Network", "text"), Ok(Some("b".into())));
        assert_eq!(o.get::<String>("Absent", "text"), Ok(None));
    }

    #[test]
    fn null_is_the_default_and_the_wrong_type_is_named() {
        let o = GoObject::parse(br#"{"A":null,"B":"24","C":24.0}"#).unwrap();
        assert_eq!(o.get::<u32>("A", "a number"), Ok(None));
        assert!(o.has("a"));
        assert_eq!(o.get::<u32>("B", "a number"), Err("B is \"24\", not a number".into()));
        assert!(o.get::<u32>("C", "an integer").is_err());
    }

    #[test]
    fn what_is_no_object_is_an_error() {
        for text in ["", "[]", "1", "{", "{\"a\":}", "\u{feff}{}"] {
            assert!(GoObject::parse(text.as_bytes()).is_err(), "{text}");
        }
    }
}
