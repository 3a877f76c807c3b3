//! Texts that others wrote become parts of messages in many places. Whatever they hold, the message is one visible line and
//! of a reasonable length.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use flanneld::agent::runtime::{Notice, Runtime};
use flanneld::agent::status::{Condition, StatusHandle};
use flanneld::backend;
use flanneld::model::env_files::{DockerOpts, previous_subnet};
use flanneld::model::foreign::is_plain;
use flanneld::model::lease::{LeaseAttrs, Record};
use flanneld::model::state_file::Remembered;
use flanneld::store::StoreError;
use proptest::prelude::*;

/// No message is longer than this, in bytes. Several problems of one config may be named in one.
const LONGEST: usize = 8000;

fn is_one_line(message: &str) -> bool {
    message.chars().all(is_plain) && message.len() <= LONGEST
}

/// Text with what could forge a line, command a terminal, hide, or turn the direction of writing.
fn hostile() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        Just("\n".to_owned()),
        Just("\r\nREADY=1\nMAINPID=1\n".to_owned()),
        Just("\u{1b}[2J\u{1b}]0;title\u{7}\u{9b}31m".to_owned()),
        Just("\u{202e}\u{2066}\u{200b}\u{feff}\u{a0}\u{2028}\u{85}\0".to_owned()),
        Just("x".repeat(5000)),
        "[a-z0-9./:{}\",-]{0,12}",
        any::<String>(),
    ];
    proptest::collection::vec(piece, 0..6).prop_map(|pieces| pieces.concat())
}

/// What is said of a config.
fn of_config(text: &str) -> Option<String> {
    backend::read_config(text.as_bytes()).err().map(|problems| problems.to_string())
}

fn string(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

proptest! {
    #[test]
    fn what_is_said_of_a_config_is_one_line(text in hostile()) {
        let json = string(&text);
        let of_members = format!(
            "{{\"Network\":{json},\"SubnetMin\":{json},\"SubnetLen\":{json},\"Backend\":{{\"Type\":{json},\"VNI\":{json}}}}}"
        );
        let of_backend = format!("{{\"Network\":\"10.5.0.0/16\",\"Backend\":{{\"Type\":{json}}}}}");
        let of_params = format!("{{\"Network\":\"10.5.0.0/16\",\"Backend\":{{\"Type\":\"vxlan\",\"VNI\":{json}}}}}");
        for config in [&text, &json, &of_members, &of_backend, &of_params] {
            let said = of_config(config);
            prop_assert!(said.as_deref().is_none_or(is_one_line), "{said:?}");
        }
    }

    #[test]
    fn what_is_said_of_keys_and_values_is_one_line(name in hostile(), value in hostile()) {
        let json = string(&value);
        let good = format!("{{\"PublicIP\":\"10.0.0.1\",\"BackendType\":{json},\"BackendData\":{{\"VtepMAC\":{json}}}}}");
        let wrong = format!("{{\"PublicIP\":{json},\"BackendType\":{json}}}");
        let subnet = "10.5.34.0-24".to_owned();
        for (name, value) in [(&name, &value), (&subnet, &value), (&subnet, &good), (&subnet, &wrong)] {
            let record = Record::decode(name, value.as_bytes(), None, 1, 1);
            let said = match &record.content {
                Ok(lease) => match lease.attrs.backend_data.as_ref().map(|data| data.vxlan()) {
                    Some(Err(reason)) => format!("{} {reason}", lease.attrs),
                    _ => lease.attrs.to_string(),
                },
                Err(malformed) => malformed.reason.clone(),
            };
            prop_assert!(is_one_line(&said), "{said:?}");
        }
        prop_assert!(LeaseAttrs::from_json(value.as_bytes()).err().as_deref().is_none_or(is_one_line));
    }

    #[test]
    fn what_is_said_of_files_and_errors_of_etcd_is_one_line(text in hostile()) {
        let env = format!("FLANNEL_SUBNET=10.5.1.1/24\nFLANNEL_MTU=\"{text}\"\nFLANNEL_IPMASQ={text}\n");
        let state = format!("{{\"version\":1,\"vtep_mac\":{},\"subnet\":\"10.5.1.0/24\"}}", string(&text));
        for said in [
            previous_subnet(&format!("FLANNEL_SUBNET={text}")).err(),
            DockerOpts::parse(&env).err(),
            Remembered::parse(&text).err(),
            Remembered::parse(&state).err(),
            Some(StoreError::Unavailable(text.clone()).to_string()),
            Some(StoreError::Refused(text.clone()).to_string()),
        ] {
            prop_assert!(said.as_deref().is_none_or(is_one_line), "{said:?}");
        }
    }

    #[test]
    fn whatever_is_raised_the_status_and_its_notifications_are_lines(text in hostile()) {
        let heard: Rc<RefCell<Vec<Notice>>> = Rc::default();
        let ear = heard.clone();
        let runtime = Runtime::new(Duration::default, 1, move |notice| ear.borrow_mut().push(notice));
        let status = StatusHandle::new(Rc::new(runtime));
        status.raise(Condition::Peers, text);
        let reasons = status.read().reasons();
        let lines = [status.read().line(), reasons.join(" ")];
        prop_assert!(lines.iter().all(|line| is_one_line(line)), "{lines:?}");
        for notice in heard.borrow().iter() {
            prop_assert!(matches!(notice, Notice::Status(line) if is_one_line(line)), "{notice:?}");
        }
    }
}
