//! What is free against each of the kubelet's limits, for people.

use std::fmt::Write as _;

use crate::base::units::bytes;
use crate::space::headroom::{Headroom, Limit};

/// So little above a limit is worth a word: a hundredth of the file system, in percent.
const CLOSE_PERCENT: u64 = 3;

/// One line for each limit, and what to type where one is close.
pub fn text(headrooms: &[Headroom], sources: &str) -> String {
    let rows: Vec<(&Headroom, &Limit)> = headrooms
        .iter()
        .flat_map(|fs| fs.limits.iter().map(move |limit| (fs, limit)))
        .collect();
    let width = |column: fn(&(&Headroom, &Limit)) -> usize| rows.iter().map(column).max();
    let mounts = width(|(fs, _)| fs.mount_point.chars().count()).unwrap_or_default();
    let names = width(|(_, limit)| limit.name.chars().count()).unwrap_or_default();
    let mut out = String::new();
    if !rows.is_empty() {
        out.push_str("  Free against the kubelet's limits:\n");
    }
    for (fs, limit) in &rows {
        let _ = writeln!(
            out,
            "    {:mounts$}  {:names$}  {}",
            fs.mount_point,
            limit.name,
            distance(limit)
        );
    }
    if rows.iter().any(|(fs, limit)| is_close(fs, limit)) {
        let _ = writeln!(
            out,
            "  That is close. To free more (old logs go):\n    rescue repair {sources} --free-target 25"
        );
    }
    out
}

fn distance(limit: &Limit) -> String {
    let amount = |number: u64| match limit.inodes {
        true => format!("{number} inodes"),
        false => bytes(number),
    };
    match limit.free.checked_sub(limit.wanted) {
        Some(above) => format!("{} above", amount(above)),
        None => format!("{} BELOW", amount(limit.wanted - limit.free)),
    }
}

fn is_close(fs: &Headroom, limit: &Limit) -> bool {
    let above = limit.free.saturating_sub(limit.wanted);
    !limit.inodes && above < fs.bytes_total / 100 * CLOSE_PERCENT
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_limit_has_its_distance_and_a_close_one_its_advice() {
        let limit = |name: &str, wanted: u64| Limit {
            name: name.to_owned(),
            wanted,
            free: 165 << 30,
            inodes: false,
        };
        let fs = |limits: Vec<Limit>| {
            text(
                &[Headroom {
                    mount_point: "/".to_owned(),
                    bytes_total: 1000 << 30,
                    bytes_available: 165 << 30,
                    limits,
                }],
                "a.img",
            )
        };
        let far = fs(vec![limit("nodefs.available<10%", 100 << 30)]);
        assert!(
            far.contains("/  nodefs.available<10%  65.0 GiB above"),
            "{far}"
        );
        assert!(!far.contains("--free-target"));
        assert!(
            fs(vec![limit("imagefs.available<15%", 150 << 30)])
                .contains("rescue repair a.img --free-target 25")
        );
        assert!(fs(vec![limit("imagefs.available<20%", 200 << 30)]).contains("35.0 GiB BELOW"));
        assert!(text(&[], "a.img").is_empty());
    }
}
