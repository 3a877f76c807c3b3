//! The fuzz targets (`fuzz/`) without a fuzzer: what their corpora hold, each input cut off everywhere, and each byte
//! of it changed.

#[path = "../fuzz/src/lib.rs"]
mod fuzz;

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

const FEWEST_INPUTS: usize = 20;
/// How many inputs are made of each one by cutting it off, and by changing it.
const VARIANTS: usize = 100;

#[test]
fn every_target_withstands_its_corpus() {
    for (name, target) in fuzz::TARGETS {
        let inputs = inputs_of(name);
        assert!(inputs.len() >= FEWEST_INPUTS, "{name}: only {} inputs", inputs.len());
        for (path, input) in inputs {
            must_withstand(target, &input, &path.display().to_string());
        }
    }
}

#[test]
fn every_target_withstands_what_is_like_its_corpus() {
    for (name, target) in fuzz::TARGETS {
        for (path, input) in inputs_of(name) {
            let step = input.len().div_ceil(VARIANTS).max(1);
            for at in (0..input.len()).step_by(step) {
                must_withstand(target, &input[..at], &format!("the first {at} bytes of {}", path.display()));
                for value in [0, 0xff, input[at] ^ 1] {
                    let mut changed = input.clone();
                    changed[at] = value;
                    must_withstand(target, &changed, &format!("{} with {value} at {at}", path.display()));
                }
            }
        }
    }
}

#[test]
fn every_corpus_has_a_target() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
    let mut dirs: Vec<String> = fs::read_dir(corpus).unwrap().map(|dir| name_of(&dir.unwrap().path())).collect();
    dirs.sort();
    assert_eq!(dirs, fuzz::TARGETS.map(|(name, _)| name.to_owned()));
}

#[track_caller]
fn must_withstand(target: fuzz::Target, input: &[u8], what: &str) {
    let outcome = catch_unwind(AssertUnwindSafe(|| target(input)));
    assert!(outcome.is_ok(), "{what}: {:?}", String::from_utf8_lossy(input));
}

fn inputs_of(target: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let entries = fs::read_dir(&dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths.into_iter().map(|path| (path.clone(), fs::read(path).unwrap())).collect()
}

fn name_of(path: &Path) -> String {
    path.file_name().unwrap().to_string_lossy().into_owned()
}
