//! Measures the kernel's cost of the routes of n peers in each possible shape, and of their neighbours and FDB entries. The
//! choice of `flanneld::backend::vxlan` rests on these numbers.
//!
//! The daemon's own socket and encoder do the work, in a network namespace that ends with the process. Each number is the
//! best of several rounds. Other work on the machine still shows in them.

mod objects;
mod shape;
mod table;

use clap::Parser;
use nix::sched::{CloneFlags, unshare};
use shape::{SHAPES, Shape};
use table::Row;

/// Times the kernel's tables. Needs root.
#[derive(Parser)]
struct Options {
    /// How many peers there are.
    #[arg(long, value_delimiter = ',', default_value = "100,1000,10000,50000")]
    peers: Vec<u32>,
    /// Each number is the best of so many.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Only shapes whose name contains this.
    #[arg(long, default_value = "")]
    shape: String,
    /// A shape that costs the square of the peers is measured up to so many.
    #[arg(long, default_value_t = 10_000)]
    quadratic: u32,
}

fn main() {
    let options = Options::parse();
    unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace of our own: run this as root");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let shapes: Vec<&Shape> = SHAPES.iter().filter(|shape| shape.name.contains(&options.shape)).collect();
    println!("What a Go flanneld's replace and delete do to a route of each shape");
    shapes.iter().for_each(|shape| println!("  {:<24} {}", shape.name, runtime.block_on(table::beside_go(shape))));
    println!("\n{}", Row::HEAD);
    for peers in &options.peers {
        for shape in shapes.iter().filter(|shape| !shape.is_quadratic() || *peers <= options.quadratic) {
            let rounds = (0..options.rounds).map(|_| runtime.block_on(table::measure(shape, *peers)));
            let best = rounds.reduce(Row::best).expect("a round");
            println!("{:<24}{peers:>7}{best}", shape.name);
        }
    }
}
