//! All that can go wrong.

use super::Sim;
use super::lab::{DEVICE, Peer, millis, secs};
use flanneld::model::mac::VtepMac;
use flanneld::store::StoreError;
use flanneld_lab::store::{Link, Lost};
use nix::libc::{EBUSY, EIO, ENOBUFS, ENOMEM, EPERM};

/// Something that goes wrong at a host. Store and kernel count themselves what they were only armed with, under the
/// same name.
pub struct Mishap {
    /// What it is.
    pub name: &'static str,
    /// Whether it is the store's and no reason to remove anything from a kernel.
    pub is_gentle: bool,
    /// Whether all keys go at once, or a host may not hear that its own key has gone.
    pub is_disaster: bool,
    /// Lets it happen; tells whether it did something.
    pub begin: fn(&mut Sim, u8, u64) -> bool,
    /// Ends it, if it lasts.
    pub end: Option<fn(&mut Sim, u8)>,
}

/// Name of what is not brought about but counted when it follows from others.
pub const EXPIRED: &str = "a lease expires while its host is cut off";

/// Lists tell of an earlier state.
pub const OLD_LIST: &str = "a list is old";

/// A daemon forgets what it has not yet written down.
pub const CRASH: &str = "a daemon crashes and starts again";

/// What a kernel calls the errors that are demanded of it.
pub const REFUSALS: [(i32, &str); 5] = [
    (EBUSY, "a kernel is busy (EBUSY)"),
    (ENOBUFS, "a kernel has no buffers (ENOBUFS)"),
    (EPERM, "a kernel does not permit (EPERM)"),
    (ENOMEM, "a kernel has no memory (ENOMEM)"),
    (EIO, "a kernel cannot be read (EIO)"),
];

const fn gentle(name: &'static str, begin: fn(&mut Sim, u8, u64) -> bool) -> Mishap {
    Mishap { name, is_gentle: true, is_disaster: false, begin, end: None }
}

const fn rough(name: &'static str, begin: fn(&mut Sim, u8, u64) -> bool) -> Mishap {
    Mishap { name, is_gentle: false, is_disaster: false, begin, end: None }
}

const fn disaster(name: &'static str, begin: fn(&mut Sim, u8, u64) -> bool) -> Mishap {
    until(Mishap { is_disaster: true, ..gentle(name, begin) }, |sim, _| sim.put_back())
}

const fn until(mishap: Mishap, end: fn(&mut Sim, u8)) -> Mishap {
    Mishap { end: Some(end), ..mishap }
}

/// All of them.
pub const MISHAPS: &[Mishap] = &[
    until(gentle("the store refuses connections", |sim, at, _| did(sim.cluster[at].store.go_down())), connect),
    until(gentle("nothing reaches the store or comes from it", |sim, at, _| cut(sim, at, true, true)), connect),
    until(gentle("requests reach the store, answers get lost", |sim, at, _| cut(sim, at, false, true)), connect),
    until(gentle("requests get lost, events arrive", |sim, at, _| cut(sim, at, true, false)), connect),
    until(gentle("the store denies permission", deny), connect),
    until(
        gentle("the store is slow", |sim, at, n| did(sim.cluster[at].store.set_latency(millis(n % 900)))),
        |sim, at| {
            sim.cluster[at].store.set_latency(millis(2));
        },
    ),
    gentle("the answer to a creation is lost", |sim, at, _| lose(sim, at, Lost::Creation)),
    gentle("the answer to a rewrite is lost", |sim, at, _| lose(sim, at, Lost::Rewrite)),
    gentle("the answer to a renewal is lost", |sim, at, _| lose(sim, at, Lost::Renewal)),
    gentle("the answer to a grant is lost", |sim, at, _| lose(sim, at, Lost::Grant)),
    rough("the answer to a removal is lost", |sim, at, n| {
        move_range(sim, at, n);
        restart(sim, at, n);
        lose(sim, at, Lost::Removal)
    }),
    until(
        gentle(OLD_LIST, |sim, at, n| {
            let past = sim.view(n);
            sim.cluster[at].store.list_as_of(Some(past));
            armed(sim.cluster[at].store.cut_watches(StoreError::Compacted(1)))
        }),
        |sim, at| sim.cluster[at].store.list_as_of(None),
    ),
    gentle("a list breaks off", |sim, at, n| {
        sim.cluster[at].store.tear_lists(1 + n as usize % 3);
        sim.cluster[at].store.cut_watches(StoreError::Compacted(1));
        false
    }),
    until(
        gentle("a watch is late", |sim, at, n| {
            sim.cluster[at].store.delay_events(millis(n % 20_000));
            false
        }),
        |sim, at| sim.cluster[at].store.delay_events(millis(0)),
    ),
    gentle("a watch tells changes twice", |sim, at, n| armed(sim.cluster[at].store.repeat_events(1 + n as usize % 3))),
    gentle("an answer of a watch breaks off", |sim, at, n| {
        armed(sim.cluster[at].store.tear_events(1 + n as usize % 3))
    }),
    gentle("a watch starts in the past", |sim, at, n| {
        sim.cluster[at].store.rewind_next_watch(1 + (n % 20) as i64);
        sim.cluster[at].store.cut_watches(StoreError::Unavailable("no leader".into()));
        false
    }),
    gentle("a watch is silent", |sim, at, _| armed(sim.cluster[at].store.silence_watches())),
    Mishap {
        is_disaster: true,
        ..gentle("a watch leaves out a change", |sim, at, n| {
            armed(sim.cluster[at].store.lose_events(1 + n as usize % 3))
        })
    },
    gentle("watches break", |sim, at, _| {
        did(sim.cluster[at].store.cut_watches(StoreError::Unavailable("no leader".into())))
    }),
    gentle("history is compacted", |sim, at, _| {
        sim.cluster.store.compact(sim.cluster.store.snapshot().revision);
        did(sim.cluster[at].store.cut_watches(StoreError::Unavailable("no leader".into())))
    }),
    disaster("the store is wiped", |sim, _, _| did(sim.rewrite_history(None))),
    disaster("the store is restored from a backup", |sim, _, n| did(sim.rewrite_history(Some(n)))),
    disaster("all keys are deleted at once", |sim, _, _| sim.cluster.store.delete_prefix("") > 0),
    gentle("the config is written again as it is", |sim, _, _| did(sim.set_config())),
    rough("a key is deleted", |sim, at, _| {
        let lease = sim.cluster.lease(at);
        lease.is_some_and(|lease| sim.cluster.store.delete(&lease.key()))
    }),
    rough("a lease is revoked", revoke),
    rough("a key is overwritten with garbage", |sim, at, _| {
        let lease = sim.cluster.lease(at);
        lease.is_some_and(|lease| did(sim.cluster.store.put_for(&lease.key(), "{", sim.life.ttl)))
    }),
    rough("the range of subnets moves", move_range),
    until(
        rough("the config is deleted", |sim, at, n| {
            sim.cluster.store.remove_config();
            restart(sim, at, n)
        }),
        |sim, _| sim.set_config(),
    ),
    gentle("a hostile key appears", hostile),
    gentle("a guest comes", |sim, _, n| did(sim.put_guest(guest(n, 0)))),
    rough("a guest changes", |sim, _, n| did(sim.put_guest(guest(n, 1 + n / 7 % 3)))),
    until(
        rough("a guest changes, and history is compacted, while a host is cut off", |sim, at, n| {
            sim.cluster[at].store.go_down();
            sim.put_guest(guest(n % 2, 1 + n / 7 % 3));
            did(sim.cluster.store.compact(sim.cluster.store.put("10.5.219.0", "")))
        }),
        connect,
    ),
    rough("a guest goes", |sim, _, n| sim.remove_guest(&guest(n, 0))),
    gentle(CRASH, restart),
    until(rough("a daemon is down", |sim, at, _| sim.stop(at)), |sim, at| sim.start(at)),
    until(rough("a host loses its power", power_off), |sim, at| sim.start(at)),
    until(
        rough("a host loses its power and its state", |sim, at, n| {
            sim.cluster[at].lose_state();
            power_off(sim, at, n)
        }),
        |sim, at| sim.start(at),
    ),
    rough("the files under /run are lost", |sim, at, _| did(sim.cluster[at].lose_env_files())),
    until(rough("a daemon is stopped (SIGSTOP)", |sim, at, _| did(sim.cluster[at].freeze(true))), |sim, at| {
        sim.cluster[at].freeze(false);
    }),
    rough("a host is suspended and its clock jumps", suspend),
    rough("a kernel is busy (EBUSY)", |sim, at, n| refuse(sim, at, n, EBUSY)),
    rough("a kernel has no buffers (ENOBUFS)", |sim, at, n| refuse(sim, at, n, ENOBUFS)),
    rough("a kernel has no memory (ENOMEM)", |sim, at, n| refuse(sim, at, n, ENOMEM)),
    until(
        rough("a kernel does not permit (EPERM)", |sim, at, n| {
            sim.cluster[at].kernel.refuse_all(Some(EPERM));
            damage(sim, at, n);
            false
        }),
        |sim, at| sim.cluster[at].kernel.refuse_all(None),
    ),
    rough("a kernel cannot be read (EIO)", |sim, at, n| {
        armed(sim.cluster[at].kernel.fail_next_reads(EIO, n as usize % 5))
    }),
    until(
        rough("a kernel is slow", |sim, at, n| did(sim.cluster[at].kernel.set_latency(millis(n % 300)))),
        |sim, at| {
            sim.cluster[at].kernel.set_latency(millis(0));
        },
    ),
    rough("a kernel loses its reports", |sim, at, n| {
        damage(sim, at, n);
        did(sim.cluster[at].kernel.overrun())
    }),
    rough("a device is lost", |sim, at, _| did(sim.cluster[at].kernel.lose_device(DEVICE))),
    rough("entries are damaged", damage),
    rough("entries are damaged without a word", |sim, at, n| {
        did(sim.cluster[at].kernel.damage_silently(DEVICE, |have| spoil(have, n)))
    }),
    rough("an MTU changes", |sim, at, n| {
        sim.cluster[at].nic.mtu = 1400 + (n % 7000) as u32;
        did(sim.cluster[at].replug())
    }),
    rough("an address changes", |sim, at, n| {
        sim.cluster[at].nic.address = format!("192.168.{}.{at}", n % 200 + 2);
        did(sim.cluster[at].replug())
    }),
    until(
        rough("the others are no longer on the link", |sim, at, n| {
            sim.cluster[at].nic.prefix = 32;
            did(if n % 2 == 0 { sim.cluster[at].replug() } else { sim.cluster[at].reroute() })
        }),
        |sim, at| {
            sim.cluster[at].nic.prefix = 24;
            sim.cluster[at].replug();
        },
    ),
    until(
        rough("an interface is gone", |sim, at, _| {
            sim.cluster[at].nic.present = false;
            did(sim.cluster[at].replug())
        }),
        |sim, at| {
            sim.cluster[at].nic.present = true;
            sim.cluster[at].nic.index += 1;
            sim.cluster[at].replug();
        },
    ),
];

fn did<T>(_: T) -> bool {
    true
}

/// Others count it when it fires.
fn armed(_: ()) -> bool {
    false
}

fn connect(sim: &mut Sim, at: u8) {
    sim.note_expiry(at);
    sim.cluster[at].store.come_back();
    sim.cluster[at].store.set_link(Link::default());
}

fn cut(sim: &mut Sim, at: u8, loses_requests: bool, loses_answers: bool) -> bool {
    did(sim.cluster[at].store.set_link(Link { loses_requests, loses_answers }))
}

fn deny(sim: &mut Sim, at: u8, _: u64) -> bool {
    let error = StoreError::Refused("permission denied".into());
    sim.cluster[at].store.fail_with(error.clone());
    did(sim.cluster[at].store.cut_watches(error))
}

fn lose(sim: &mut Sim, at: u8, change: Lost) -> bool {
    armed(sim.cluster[at].store.lose_next(change))
}

fn move_range(sim: &mut Sim, _: u8, _: u64) -> bool {
    sim.range_is_high = !sim.range_is_high;
    did(sim.set_config())
}

fn restart(sim: &mut Sim, at: u8, _: u64) -> bool {
    let runs = sim.stop(at);
    if runs {
        sim.start(at);
    }
    runs
}

fn power_off(sim: &mut Sim, at: u8, _: u64) -> bool {
    sim.stop(at);
    did(sim.cluster[at].lose_power())
}

fn revoke(sim: &mut Sim, at: u8, _: u64) -> bool {
    let Some(key) = sim.cluster.lease(at).map(|lease| lease.key()) else { return false };
    let records = sim.cluster.store.snapshot().records;
    let lease = records.into_iter().find(|record| *record.name == key).and_then(|record| record.content.ok());
    lease.and_then(|lease| lease.lease_id).is_some_and(|id| did(sim.cluster.store.revoke(id)))
}

/// The host wakes up later by its clock, while its timers stood still. If that was too late, its lease is over.
fn suspend(sim: &mut Sim, at: u8, number: u64) -> bool {
    let slept = secs(1 + number % (sim.life.ttl.as_secs() * 2));
    sim.cluster[at].sleep_for(slept);
    if slept > sim.life.ttl {
        revoke(sim, at, number);
    }
    true
}

fn refuse(sim: &mut Sim, at: u8, number: u64, errno: i32) -> bool {
    sim.cluster[at].kernel.fail_next(|_| true, errno, 1 + number as usize % 8);
    damage(sim, at, number);
    false
}

fn damage(sim: &mut Sim, at: u8, number: u64) -> bool {
    did(sim.cluster[at].kernel.disturb(DEVICE, |have| spoil(have, number)))
}

/// Removes, changes or adds something.
fn spoil(have: &mut flanneld::model::kernel_state::Have, number: u64) {
    let stray = VtepMac([0x0e, 1, 0, 0, 0, number as u8]);
    match number % 6 {
        0 => drop(have.neighbors.pop_first()),
        1 => drop(have.fdb.pop_first()),
        2 => drop(have.routes.pop_first()),
        3 => have.neighbors.values_mut().for_each(|neighbor| neighbor.mac = Some(stray)),
        4 => drop(have.fdb.insert(stray, ["192.168.9.9".parse().expect("an address")].into())),
        _ => {
            have.neighbors.clear();
            have.fdb.clear();
        }
    }
}

/// A host that is none of the cluster's; with other attributes than at first if `change` is not 0.
pub fn guest(number: u64, change: u64) -> Peer {
    let mut guest = Peer::guest(201 + (number % 4) as u8);
    if change > 0 {
        guest.mac = guest.mac.replace("0e:00:00:00:00", &format!("0e:00:00:00:0{change}"));
    }
    if change > 1 {
        guest.address = guest.address.replace("192.168.1.", &format!("192.168.25{change}."));
    }
    guest
}

/// A key that must have no effect on any host.
fn hostile(sim: &mut Sim, _: u8, number: u64) -> bool {
    const KEYS: [&str; 8] =
        ["foo", "", "10.5.220.0", "10.5.220.0-24x", "010.5.220.0-24", "10.6.0.0-24", "127.0.0.0-8", "10.5.240.0-25"];
    let fine = Peer { mac: "0e:00:00:00:09:09".into(), address: "192.168.1.9".into(), first: String::new() }.json();
    const VALUES: [&str; 5] = [
        "",
        "{",
        r#"{"PublicIP":"127.0.0.1","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"0e:00:00:00:09:09"}}"#,
        r#"{"PublicIP":"192.168.1.9","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"ff:ff:ff:ff:ff:ff"}}"#,
        r#"{"PublicIP":"192.168.1.9","BackendType":"vxlan","BackendData":{"VNI":2,"VtepMAC":"0e:00:00:00:09:09"}}"#,
    ];
    let (name, value) = match number % 13 {
        n @ 0..8 => (KEYS[n as usize].to_owned(), fine),
        n => (format!("10.5.{}.0-24", 221 + n), VALUES[n as usize - 8].to_owned()),
    };
    sim.cluster.hostile.insert(name.clone());
    did(sim.cluster.store.put_for(&name, value, sim.life.ttl))
}
