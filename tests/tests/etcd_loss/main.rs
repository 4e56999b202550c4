//! No acknowledged write is lost: three real members under load are killed at random moments, their disks are damaged, `rescue repair`
//! mends them, and what real etcd then holds is compared with every write that it had acknowledged.
//!
//! 30 rounds by default; `RESCUE_ETCD_ROUNDS=500` for more (from `RESCUE_ETCD_FROM` on, so that several can share the work), with the results kept
//! in `RESCUE_ETCD_RECORD` (a file of one JSON line per round; rounds that are in it are not made again) and etcd's own ways back beside ours.

mod damage;
mod load;
mod peers;
mod record;
mod round;

use anyhow::{Result, ensure};
use tests::etcd::Version;

use record::Record;
use round::Outcome;

/// Rounds that one cluster lives through at most: a repaired one is damaged again.
const ROUNDS_OF_A_CLUSTER: u64 = 5;

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).ok().and_then(|number| number.parse().ok()).unwrap_or(default)
}

#[test]
fn acknowledged_writes_survive() -> Result<()> {
    let mut record = Record::open()?;
    // etcd 3.5.1 diverges now and then by itself; where rounds are recorded, that is part of the record.
    let versions = if record.compares() { Version::all()? } else { vec![Version::debian()] };
    let mut failed = Vec::new();
    let (from, rounds) = (number("RESCUE_ETCD_FROM", 0), number("RESCUE_ETCD_ROUNDS", 30));
    for episode in from / ROUNDS_OF_A_CLUSTER..rounds.div_ceil(ROUNDS_OF_A_CLUSTER) {
        let first = episode * ROUNDS_OF_A_CLUSTER;
        let last = (first + ROUNDS_OF_A_CLUSTER).min(rounds);
        if record.has(last - 1) {
            continue;
        }
        let version = &versions[usize::try_from(episode)? % versions.len()];
        let mut state = round::start(version, episode)?;
        for number in first..last {
            let line = round::run(&mut state, number, record.compares())?;
            println!("{}", line.sentence());
            record.keep(&line)?;
            match line.outcome {
                Outcome::LostMore => failed.push(line.sentence()),
                Outcome::Whole | Outcome::LostAsAnnounced => continue,
                Outcome::Refused | Outcome::Silent | Outcome::Diverged => {}
            }
            // Nothing to go on with.
            state = round::start(version, number + 1_000_000)?;
        }
    }
    println!("{}", record.summary());
    ensure!(failed.is_empty(), "acknowledged writes were lost: {failed:#?}");
    record.ensure_something_was_proved()
}
