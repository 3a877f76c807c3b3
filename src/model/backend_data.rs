//! The backend's part of a lease: JSON of its own, which others keep as it is.

use super::foreign::{QUOTED, shown};
use super::go_json::GoObject;
use super::mac::VtepMac;
use std::borrow::Cow;

/// A backend's own JSON, compact. There are as many of these as hosts, so what is as we write it is kept as what it says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackendData(Form);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Form {
    /// Exactly [`VxlanData::to_json`].
    Vxlan(VxlanData),
    Text(Box<str>),
}

impl BackendData {
    /// The JSON, byte for byte as it was read.
    pub fn text(&self) -> Cow<'_, str> {
        match &self.0 {
            Form::Vxlan(data) => data.to_json().into(),
            Form::Text(text) => (&**text).into(),
        }
    }

    /// Reads it as the VXLAN backend's.
    ///
    /// # Errors
    /// Says which member is missing or wrong.
    pub fn vxlan(&self) -> Result<VxlanData, String> {
        match &self.0 {
            Form::Vxlan(data) => Ok(*data),
            Form::Text(text) => VxlanData::from_json(text),
        }
    }
}

impl<T: AsRef<str> + Into<Box<str>>> From<T> for BackendData {
    fn from(text: T) -> Self {
        match VxlanData::from_json(text.as_ref()) {
            Ok(data) if data.to_json() == text.as_ref() => BackendData(Form::Vxlan(data)),
            _ => BackendData(Form::Text(text.into())),
        }
    }
}

/// The VXLAN backend's part of a lease: `{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:44"}`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VxlanData {
    /// VXLAN network identifier; absent in 0.7's form.
    pub vni: Option<u32>,
    /// MAC of the tunnel endpoint.
    pub mac: VtepMac,
}

impl VxlanData {
    /// Reads `BackendData`.
    ///
    /// # Errors
    /// Says which member is missing or wrong.
    pub fn from_json(text: &str) -> Result<Self, String> {
        let object = GoObject::parse(text.as_bytes())
            .map_err(|_| format!("BackendData is {}, not an object with a VtepMAC", shown(text, QUOTED)))?;
        let mac: String = object.get("VtepMAC", "a MAC address")?.ok_or("BackendData has no VtepMAC")?;
        let mac = mac.parse().map_err(|e| format!("VtepMAC {e}"))?;
        Ok(VxlanData { vni: object.get("VNI", "a VXLAN network identifier")?, mac })
    }

    /// The JSON that today's flannel writes.
    pub fn to_json(&self) -> String {
        let vni = self.vni.map(|vni| format!("\"VNI\":{vni},")).unwrap_or_default();
        format!("{{{vni}\"VtepMAC\":\"{}\"}}", self.mac)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_text_is_kept_as_it_is() {
        for text in [
            r#"{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:44"}"#,
            r#"{"VtepMAC":"c6:d2:32:6f:8f:44"}"#,
            r#"{"VNI":1,"VtepMAC":"C6:D2:32:6F:8F:44"}"#,
            r#"{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:44","GBP":true}"#,
            r#"{"VtepMAC":"c6:d2:32:6f:8f:44","VNI":1}"#,
            r#"{ "VtepMAC":"c6:d2:32:6f:8f:44"}"#,
            "1",
            "",
        ] {
            let data = BackendData::from(text);
            assert_eq!((&*data.text(), data.vxlan()), (text, VxlanData::from_json(text)));
        }
    }
}
