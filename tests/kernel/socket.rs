//! The socket by itself: calls that are cut short, answers that are lost, tables that change while they are read.

use crate::lab::*;
use flanneld::kernel::socket::{NetlinkSocket, Request, object};
use flanneld::kernel::wire::Refusal;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::RouteNetlinkMessage as Message;
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::{LinkAttribute, LinkMessage};
use nix::libc::{EEXIST, ENOBUFS, ENODEV};
use nix::sys::socket::{setsockopt, sockopt};
use std::collections::BTreeSet;
use std::future::Future;
use std::net::IpAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Waker};
use std::time::{Duration, Instant};

const LOOPBACK: u32 = 1;

fn address(n: u32) -> AddressMessage {
    let ip = IpAddr::from((0x0a00_0000 | n).to_be_bytes());
    let mut message = AddressMessage::default();
    message.header.family = netlink_packet_route::AddressFamily::Inet;
    message.header.prefix_len = 32;
    message.header.index = LOOPBACK;
    message.attributes = vec![AddressAttribute::Local(ip), AddressAttribute::Address(ip)];
    message
}

fn add(n: u32) -> Request {
    Request { message: Message::NewAddress(address(n)), flags: NLM_F_CREATE | NLM_F_EXCL }
}

fn delete(n: u32) -> Request {
    Request { message: Message::DelAddress(address(n)), flags: 0 }
}

/// The number of addresses in 10.0.0.0/8, which are all different.
async fn count(socket: &mut NetlinkSocket) -> usize {
    let all =
        socket.dump("dump addresses", Message::GetAddress(AddressMessage::default()), object).await.expect("a dump");
    numbers(&all).len()
}

fn numbers(messages: &[Message]) -> BTreeSet<IpAddr> {
    let local = |message: &Message| match message {
        Message::NewAddress(address) => address.attributes.iter().find_map(|attribute| match attribute {
            AddressAttribute::Local(ip) => Some(*ip),
            _ => None,
        }),
        other => panic!("not an address: {other:?}"),
    };
    let all: Vec<IpAddr> = messages.iter().filter_map(local).collect();
    let different: BTreeSet<IpAddr> = all.iter().copied().collect();
    assert_eq!(all.len(), different.len(), "some addresses came twice");
    different
}

/// Starts a call and drops it as soon as it waits; tells whether it did. Answers are there at once, but tokio lets nobody
/// go on for ever.
fn cut_short<T>(call: impl Future<Output = T>) -> bool {
    let mut context = Context::from_waker(Waker::noop());
    pin!(call).poll(&mut context).is_pending()
}

/// Whether one of many calls was cut short.
fn one_of_many(cut: impl FnMut(usize) -> bool) -> bool {
    (0..1000).any(cut)
}

#[test]
fn a_call_that_was_cut_short_does_not_disturb_the_next() {
    in_a_new_namespace(async || {
        let mut socket = NetlinkSocket::open().expect("a socket");
        let results = socket.batch((0..3000).map(add)).await;
        assert!(results.len() == 3000 && results.iter().all(Result::is_ok));
        assert_eq!(count(&mut socket).await, 3000);
        let table = || Message::GetAddress(AddressMessage::default());
        for _ in 0..3 {
            assert!(one_of_many(|_| cut_short(socket.dump("dump addresses", table(), object))));
            assert_eq!(count(&mut socket).await, 3000);
            assert!(one_of_many(|_| cut_short(socket.dump("dump addresses", table(), object))));
            assert_eq!(socket.change(add(1)).await.map_err(|refusal| refusal.errno), Err(EEXIST));
            assert!(one_of_many(|_| cut_short(socket.batch((0..100).map(delete)))));
            assert!(one_of_many(|_| cut_short(socket.batch((100..200).map(delete)))));
            let results = socket.batch((0..200).map(add)).await;
            for half in results.chunks(100) {
                assert!(half.iter().all(|result| *result == half[0]), "a batch is sent as a whole or not at all");
            }
        }
    });
}

#[test]
fn lost_answers_are_unknown_results_and_what_follows_is_done() {
    in_a_new_namespace(async || {
        let mut socket = NetlinkSocket::open().expect("a socket");
        setsockopt(&socket, sockopt::RcvBuf, &1).expect("a small buffer");
        assert!(socket.batch((0..150).map(add)).await.iter().all(Result::is_ok), "one answer fits");
        // Refusals are told one by one.
        let results = socket.batch((0..450).map(add)).await;
        assert_eq!(results.len(), 450);
        let is = |result: &Result<(), Refusal>, errno| result.as_ref().is_err_and(|refusal| refusal.errno == errno);
        let (first, rest) = results.split_at(200);
        assert!(first.iter().any(|result| is(result, ENOBUFS)));
        assert!(first.iter().all(|result| is(result, ENOBUFS) || is(result, EEXIST)));
        assert!(rest.iter().all(Result::is_ok), "the next send has a new socket");
        assert_eq!(count(&mut socket).await, 450);
    });
}

#[test]
fn a_question_has_an_answer_or_a_refusal() {
    in_a_new_namespace(async || {
        let mut socket = NetlinkSocket::open().expect("a socket");
        let mut ask = LinkMessage::default();
        ask.attributes = vec![LinkAttribute::IfName("lo".to_owned())];
        let answer = socket.get("get lo", Message::GetLink(ask.clone())).await.expect("lo");
        assert!(matches!(answer, Some(Message::NewLink(link)) if link.header.index == LOOPBACK));
        ask.attributes = vec![LinkAttribute::IfName("nothing".to_owned())];
        let refusal = socket.get("get nothing", Message::GetLink(ask)).await.expect_err("nothing");
        assert_eq!((refusal.what.as_str(), refusal.errno), ("get nothing", ENODEV));
        assert_eq!(socket.batch([]).await, []);
        let mut strict = AddressMessage::default();
        strict.header.index = 99;
        let refusal = socket.dump("dump", Message::GetAddress(strict), object).await.expect_err("no such device");
        assert_eq!(refusal.errno, ENODEV, "dumps are checked and filtered");
    });
}

#[test]
fn a_table_that_changes_while_it_is_read_is_never_seen_in_part() {
    in_a_new_namespace(async || {
        let mut socket = NetlinkSocket::open().expect("a socket");
        assert!(socket.batch((0..3000).map(add)).await.iter().all(Result::is_ok));
        let done = Arc::new(AtomicBool::new(false));
        let stop = done.clone();
        let other = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async {
                let mut socket = NetlinkSocket::open().expect("a socket");
                while !stop.load(Ordering::Relaxed) {
                    let _ = socket.batch((2900..3100).flat_map(|n| [delete(n), add(n)])).await;
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            });
        });
        // An emulated kernel needs seconds for each, and changes the table meanwhile all the more.
        let begun = Instant::now();
        for _ in (0..20).take_while(|_| begun.elapsed() < Duration::from_secs(5)) {
            match socket.dump("dump addresses", Message::GetAddress(AddressMessage::default()), object).await {
                Ok(all) => assert!(numbers(&all).len() >= 2899, "{}", numbers(&all).len()),
                Err(error) => assert!(error.errno == 0 && error.reason.contains("changed"), "{error}"),
            }
        }
        done.store(true, Ordering::Relaxed);
        other.join().expect("the other thread");
    });
}
