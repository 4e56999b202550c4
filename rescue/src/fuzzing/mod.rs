//! What is fuzzed: every reader of bytes that a guest may have crafted, one function for each target of `fuzz/`. Built for the fuzzer
//! (feature `fuzzing`) and for the test that replays seeds and earlier findings; never a part of the program.
//!
//! A target takes any bytes. It must return soon, with little memory and without a panic, and what it says must hold.

mod disks;
mod files;
mod guests;
mod runs;
mod shown;

pub use disks::{ext_tree, images, lvm_disk, lvm_text, partition_tables, probes};
pub use files::{certificates, kubeconfig_edits, yaml_documents};
pub use guests::{fstab, units};
pub use runs::{hostile_runs, journal};

/// A target: any bytes.
pub type Target = fn(&[u8]);

/// All targets by the name of their folder in `fuzz/corpus` and `fuzz/regressions`.
pub const TARGETS: [(&str, Target); 13] = [
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
                let Ok(inputs) = std::fs::read_dir(fuzz.join(kept).join(name)) else { continue };
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
}
