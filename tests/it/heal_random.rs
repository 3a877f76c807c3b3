//! Damage upon damage, in random order, while peers come and go: whatever the order, all is as before in the end.
//!
//! `HEAL_SECONDS` lets it run longer than by default; `HEAL_SEED` repeats a run's choices, though not its timing.

use std::env;
use std::thread::sleep;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::damage::{ADDRESSES, DEVICES, Damage, FDB, NEIGHBORS, PARAMETERS, ROUTES};
use crate::field::Field;
use crate::lab::Lease;

const SECONDS: u64 = 12;

/// What befalls the NIC; at the end of a round it is configured as it was.
const NIC: [&str; 4] =
    ["ip link set eth0 down; ip link set eth0 up", "ip link set eth0 mtu 1400", "ip addr flush dev eth0", UNPLUG];
const UNPLUG: &str = "ip link del eth0";

/// What a script cannot do.
enum Act {
    Damage(&'static str),
    /// The daemon stands still for a moment, so that it finds much damage at once.
    Freeze,
    /// It is killed and started again.
    Kill,
    GuestComes(u8),
    GuestGoes(u8),
    Wait(Duration),
}

fn number(variable: &str) -> Option<u64> {
    env::var(variable).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{variable} is no number: {text}")))
}

fn choose(random: &mut StdRng) -> Act {
    const TABLES: [&[Damage]; 6] = [ROUTES, NEIGHBORS, FDB, ADDRESSES, PARAMETERS, DEVICES];
    match random.random_range(0..22) {
        0 => Act::Freeze,
        1 if random.random_bool(0.3) => Act::Kill,
        2 | 3 => Act::GuestComes(random.random_range(210..214)),
        4 | 5 => Act::GuestGoes(random.random_range(210..214)),
        6 => Act::Damage(NIC[random.random_range(0..NIC.len())]),
        7..=9 => Act::Wait(Duration::from_millis(random.random_range(0..50))),
        _ => {
            let table = TABLES[random.random_range(0..TABLES.len())];
            Act::Damage(table[random.random_range(0..table.len())].0)
        }
    }
}

fn act(field: &mut Field, act: &Act) {
    match act {
        // What it would break may be broken already.
        Act::Damage(script) => {
            println!("  {}{script}", if field.try_damage(script) { "" } else { "in vain: " });
            if *script == UNPLUG {
                field.hosts[0].plug_in_nic();
            }
        }
        Act::Freeze => {
            println!("  SIGSTOP");
            field.hosts[0].freeze();
        }
        Act::Kill => {
            println!("  SIGKILL, start");
            field.hosts[0].kill9();
            field.hosts[0].start(&[]);
        }
        Act::GuestComes(n) => field.etcd.put_lease(&Lease::guest(*n)),
        Act::GuestGoes(n) => field.etcd.del(&Lease::guest(*n).key()),
        Act::Wait(pause) => sleep(*pause),
    }
}

#[test]
fn any_sequence_of_damage_heals() {
    let seed = number("HEAL_SEED").unwrap_or_else(rand::random);
    let time = Duration::from_secs(number("HEAL_SECONDS").unwrap_or(SECONDS));
    println!("HEAL_SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let mut field = Field::new("random");
    let (start, mut rounds, mut longest) = (Instant::now(), 0, Duration::ZERO);
    while start.elapsed() < time {
        rounds += 1;
        println!("round {rounds}");
        for _ in 0..random.random_range(1..12) {
            let chosen = choose(&mut random);
            act(&mut field, &chosen);
        }
        field.hosts[0].thaw();
        field.hosts[0].ip("link set eth0 mtu 1500");
        field.hosts[0].configure_nic();
        (210..214).for_each(|n| field.etcd.del(&Lease::guest(n).key()));
        let healing = Instant::now();
        field.hosts[0].returns_to(&field.before);
        println!("  healed within {:?}", healing.elapsed());
        longest = longest.max(healing.elapsed());
        field.containers_reach_each_other();
    }
    println!("{rounds} rounds, the longest healed within {longest:?}");
    field.hosts[0].wait_ready();
    field.is_well();
}
