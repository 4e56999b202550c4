//! What is fuzzed: every reader of bytes that a guest may have crafted, one function for each
//! target of `fuzz/`. Built for the fuzzer (feature `fuzzing`) and for the test that replays seeds
//! and earlier findings; never a part of the program.
//!
//! A target takes any bytes. It must return soon, with little memory and without a panic, and what
//! it says must hold.

mod disks;
mod etcd;
mod files;
mod guests;
mod runs;
mod shown;
mod trust;

pub use disks::{ext_tree, images, lvm_disk, lvm_text, partition_tables, probes};
pub use etcd::{etcd_database, etcd_log, etcd_messages, etcd_salvage, etcd_snap};
pub use files::{certificates, kubeconfig_edits, yaml_documents};
pub use guests::{fstab, units};
pub use runs::{hostile_runs, journal};
pub use trust::{trust, trust_etcd};

/// A target: any bytes.
pub type Target = fn(&[u8]);

/// All targets by the name of their folder in `fuzz/corpus` and `fuzz/regressions`.
pub const TARGETS: [(&str, Target); 20] = [
    ("partition_tables", partition_tables),
    ("lvm_disk", lvm_disk),
    ("lvm_text", lvm_text),
    ("images", images),
    ("ext_tree", ext_tree),
    ("probes", probes),
    ("units", units),
    ("fstab", fstab),
    ("kubeconfig_edits", kubeconfig_edits),
    ("yaml_documents", yaml_documents),
    ("certificates", certificates),
    ("journal", journal),
    ("hostile_runs", hostile_runs),
    ("etcd_log", etcd_log),
    ("etcd_snap", etcd_snap),
    ("etcd_messages", etcd_messages),
    ("etcd_database", etcd_database),
    ("etcd_salvage", etcd_salvage),
    ("trust", trust),
    ("trust_etcd", trust_etcd),
];

/// The parts of an input that stands for several files: separated by a byte that no text has.
fn parts<const N: usize>(data: &[u8]) -> [&[u8]; N] {
    let mut all = data.splitn(N, |byte| *byte == 0xff);
    std::array::from_fn(|_| all.next().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    /// Seeds from real tools, and everything that the fuzzer ever found.
    #[test]
    fn seeds_and_earlier_findings() {
        let fuzz = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz");
        for (name, target) in TARGETS {
            let mut tried = 0;
            for kept in ["corpus", "regressions"] {
                let Ok(inputs) = std::fs::read_dir(fuzz.join(kept).join(name)) else {
                    continue;
                };
                for input in inputs {
                    let path = input.unwrap().path();
                    let started = std::time::Instant::now();
                    target(&std::fs::read(&path).unwrap());
                    let took = started.elapsed();
                    assert!(took.as_secs() < 20, "{} took {took:?}", path.display());
                    tried += 1;
                }
            }
            assert!(tried > 0, "{name} has no seed");
            target(b"");
        }
    }

    /// The same for the disks that say what they are not. `RESCUE_MUTATIONS` says how many pairs,
    /// in hundreds.
    #[test]
    fn shuffled_facts_of_two_disks() {
        let rounds: u64 = std::env::var("RESCUE_MUTATIONS")
            .ok()
            .and_then(|rounds| rounds.parse().ok())
            .unwrap_or(4);
        let mut state = 7u64;
        for _ in 0..rounds * 100 {
            let facts: Vec<u8> = std::iter::repeat_with(|| {
                state = state
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1);
                (state >> 40) as u8
            })
            .take(64)
            .collect();
            trust(&facts);
            trust_etcd(&facts);
        }
    }

    /// A little of what the fuzzer does, for etcd's files: seeds with some bytes changed, the same
    /// on every run. `RESCUE_MUTATIONS` says how many of each.
    #[test]
    fn changed_seeds_of_etcd() {
        let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus");
        let rounds = std::env::var("RESCUE_MUTATIONS")
            .ok()
            .and_then(|rounds| rounds.parse().ok())
            .unwrap_or(40);
        let mut state = 1u64;
        let mut random = |below: usize| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            (state >> 33) as usize % below.max(1)
        };
        for (name, target) in TARGETS.iter().filter(|(name, _)| name.starts_with("etcd_")) {
            let mut seeds: Vec<_> = std::fs::read_dir(corpus.join(name))
                .unwrap()
                .map(|seed| seed.unwrap().path())
                .collect();
            seeds.sort();
            for seed in seeds {
                let seed = std::fs::read(seed).unwrap();
                for _ in 0..rounds {
                    let mut input = seed.clone();
                    for _ in 0..random(8) {
                        match random(4) {
                            0 => input.push(random(256) as u8),
                            1 => input.truncate(random(input.len() + 1)),
                            // A change of three bytes, as the targets with a base take them.
                            2 => input.extend((0..3).map(|_| random(256) as u8)),
                            _ => {
                                let at = random(input.len());
                                if let Some(byte) = input.get_mut(at) {
                                    *byte = random(256) as u8;
                                }
                            }
                        }
                    }
                    let kept = input.clone();
                    let ended = std::panic::catch_unwind(|| target(&kept));
                    assert!(ended.is_ok(), "{name}: {input:02x?}");
                }
            }
        }
    }
}
