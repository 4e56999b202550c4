//! Every file of a control plane's pki and its kubeconfigs × everything that a power cut, a
//! careless copy or a calendar does to it. Each case ends in a working tree, judged by openssl, or
//! in a refusal that names the file and changes nothing.

#[path = "../pki_support/mod.rs"]
mod pki_support;

mod damage;
mod tree;

use anyhow::{Context as _, Result, ensure};
use damage::{Damage, damage};
use pki_support::{repair, told};
use rescue::base::severity::Severity;
use rescue::finding::Finding;
use rescue::settings::Settings;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use tree::{CONFIGS, Files, Kind, PKI, Tree};

/// How a case ended.
#[derive(Debug, PartialEq, Eq, Clone, Copy)]
enum End {
    /// Nothing was wrong with it for its users: nothing is touched, all certificates hold.
    Untouched,
    /// Something was written, and all certificates hold.
    Mended,
    /// Nothing was written, and a finding names the file.
    Refused,
}

fn counts(findings: &[Finding]) -> bool {
    findings
        .iter()
        .any(|finding| finding.severity > Severity::Note)
}

fn names(findings: &[Finding], path: &str) -> bool {
    let has = |finding: &Finding| {
        finding
            .evidence
            .iter()
            .any(|evidence| evidence.place().contains(path) || evidence.saw.contains(path))
            || finding.advice.iter().any(|line| line.contains(path))
    };
    findings.iter().any(has)
}

/// Damages one file of a copy of the tree, repairs, and judges what is there then.
fn case(healthy: &Tree, file: &tree::File, how: Damage) -> Result<End> {
    let copy = healthy.copy()?;
    damage(&copy, file, how)?;
    let broken = Files::of(copy.root())?;
    let settings = Settings {
        now: healthy.now,
        now_given: true,
        ..Settings::default()
    };
    let (before, after) = repair(copy.root(), &settings)?;
    let repaired = Files::of(copy.root())?;
    let changed = repaired.differing(&broken);
    let end = match (counts(&after), changed.is_empty()) {
        (false, true) => End::Untouched,
        (false, false) => End::Mended,
        (true, true) => End::Refused,
        (true, false) => anyhow::bail!(
            "{changed:?} changed, and yet there is left:\n{}",
            told(&after)
        ),
    };
    match end {
        End::Refused => {
            let path = format!("/{}", file.path);
            ensure!(
                names(&after, &path),
                "no finding names {path}:\n{}",
                told(&after)
            );
        }
        End::Untouched | End::Mended => {
            for leaf in PKI.iter().filter(|leaf| leaf.is_leaf()) {
                healthy
                    .same_identity(copy.root(), leaf)
                    .with_context(|| told(&before))?;
            }
            for config in &CONFIGS {
                healthy
                    .same_client(copy.root(), config)
                    .with_context(|| told(&before))?;
            }
            let strange = changed.iter().find(|path| !file.belongs_to(path));
            ensure!(
                strange.is_none(),
                "{strange:?} changed too:\n{}",
                told(&before)
            );
        }
    }
    Ok(end)
}

/// What must come of it; `None` where both mending and refusing are right.
fn expected(kind: Kind, how: Damage) -> Option<End> {
    let harmless = matches!(
        how,
        Damage::Crlf | Damage::TextBefore | Damage::TwoCertificates
    );
    match kind {
        // kube-controller-manager exits where it signs with two; other CAs may be bundles.
        Kind::CaCertificate if how == Damage::TwoCertificates => None,
        _ if harmless => Some(End::Untouched),
        Kind::LeafCertificate | Kind::LeafKey | Kind::Config => Some(End::Mended),
        Kind::CaCertificate => None,
        // A CA whose key is elsewhere is nothing wrong.
        Kind::CaKey => (how == Damage::Absent).then_some(End::Untouched),
    }
}

#[test]
fn every_broken_tree_is_mended_or_refused() -> Result<()> {
    let healthy = Tree::new()?;
    let files = tree::files();
    let cases: Vec<_> = files
        .iter()
        .flat_map(|file| {
            Damage::of(file.kind)
                .into_iter()
                .map(move |how| (file, how))
        })
        .collect();
    // Most of a case is openssl's time, so that two cores take half of it.
    let next = AtomicUsize::new(0);
    let work = || -> Vec<Result<End, String>> {
        let mut ends = Vec::new();
        while let Some((file, how)) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
            let shown = |what: String| format!("{} {how:?}: {what}", file.path);
            ends.push(match case(&healthy, file, *how) {
                Ok(end) if expected(file.kind, *how).is_none_or(|expected| expected == end) => {
                    Ok(end)
                }
                Ok(end) => Err(shown(format!("{end:?}"))),
                Err(error) => Err(shown(format!("{error:#}"))),
            });
        }
        ends
    };
    let ends: Vec<Result<End, String>> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..2).map(|_| scope.spawn(work)).collect();
        let ended = workers.into_iter().map(|worker| {
            worker
                .join()
                .unwrap_or_else(|_| vec![Err("a panic".to_owned())])
        });
        ended.flatten().collect()
    });
    let failed: Vec<&str> = ends
        .iter()
        .filter_map(|end| Some(end.as_ref().err()?.as_str()))
        .collect();
    ensure!(
        failed.is_empty(),
        "{} of {} cases:\n{}",
        failed.len(),
        cases.len(),
        failed.join("\n")
    );
    let count = |wanted: End| ends.iter().filter(|end| **end == Ok(wanted)).count();
    let counts = [End::Untouched, End::Mended, End::Refused].map(count);
    // As many as there are combinations, and each kind of end among them.
    ensure!(
        ends.len() == cases.len() && cases.len() >= 200 && counts.iter().all(|count| *count > 10),
        "{counts:?}"
    );
    println!(
        "{} cases: {counts:?} untouched, mended, refused",
        cases.len()
    );
    Ok(())
}

#[test]
fn the_healthy_tree_is_left_alone() -> Result<()> {
    let healthy = Tree::new()?;
    let before = Files::of(healthy.root())?;
    let settings = Settings {
        now: healthy.now,
        now_given: true,
        ..Settings::default()
    };
    let (found, after) = repair(healthy.root(), &settings)?;
    ensure!(found.is_empty() && after.is_empty(), "{}", told(&found));
    ensure!(Files::of(healthy.root())?.differing(&before).is_empty());
    for leaf in PKI.iter().filter(|leaf| leaf.is_leaf()) {
        healthy.same_identity(healthy.root(), leaf)?;
    }
    CONFIGS
        .iter()
        .try_for_each(|config| healthy.same_client(healthy.root(), config))
}

#[test]
fn certificate_and_key_lost_together_come_back() -> Result<()> {
    let healthy = Tree::new()?;
    let settings = Settings {
        now: healthy.now,
        now_given: true,
        ..Settings::default()
    };
    // All of them at once: no sibling is left to look at.
    let copy = healthy.copy()?;
    for leaf in PKI.iter().filter(|leaf| leaf.is_leaf()) {
        for extension in ["crt", "key"] {
            std::fs::remove_file(copy.root().join(format!("{}.{extension}", leaf.path())))?;
        }
    }
    let (before, after) = repair(copy.root(), &settings)?;
    ensure!(!counts(&after), "{}", told(&after));
    for leaf in PKI.iter().filter(|leaf| leaf.is_leaf()) {
        healthy
            .same_identity(copy.root(), leaf)
            .with_context(|| told(&before))?;
        for (extension, mode) in [("crt", 0o644), ("key", 0o600)] {
            let file = copy.root().join(format!("{}.{extension}", leaf.path()));
            let meta = std::fs::metadata(&file)?;
            ensure!(
                std::os::unix::fs::PermissionsExt::mode(&meta.permissions()) & 0o7777 == mode,
                "{}",
                file.display()
            );
        }
    }
    Ok(())
}

#[test]
fn reused_keys_keep_their_bytes_and_unusable_ones_are_replaced() -> Result<()> {
    let healthy = Tree::new()?;
    let copy = healthy.copy()?;
    let lost = "etc/kubernetes/pki/etcd/peer.key";
    std::fs::write(copy.root().join(lost), "")?;
    let admin = |root: &Path| -> Result<Vec<String>> {
        let text = std::fs::read_to_string(root.join("etc/kubernetes/admin.conf"))?;
        Ok(text
            .lines()
            .filter(|line| line.contains("-data:"))
            .map(str::to_owned)
            .collect())
    };
    let before = Files::of(copy.root())?;
    let old_admin = admin(copy.root())?;
    let at_the_end = healthy.now + time::Duration::days(i64::from(tree::LEAF_DAYS));
    let settings = Settings {
        now: at_the_end,
        now_given: true,
        reuse_keys: true,
        ..Settings::default()
    };
    let (found, after) = repair(copy.root(), &settings)?;
    ensure!(!counts(&after), "{}", told(&after));
    let changed = Files::of(copy.root())?.differing(&before);
    let keys: Vec<&String> = changed
        .iter()
        .filter(|path| path.ends_with(".key"))
        .collect();
    ensure!(keys == [lost], "{keys:?}");
    ensure!(
        told(&found).contains("the old one cannot be used again"),
        "{}",
        told(&found)
    );
    for leaf in PKI.iter().filter(|leaf| leaf.is_leaf()) {
        ensure!(
            changed.contains(&format!("{}.crt", leaf.path())),
            "{} is renewed",
            leaf.name
        );
        healthy.same_identity_at(copy.root(), leaf, at_the_end)?;
    }
    let new_admin = admin(copy.root())?;
    ensure!(
        old_admin[0] == new_admin[0]
            && old_admin[1] != new_admin[1]
            && old_admin[2] == new_admin[2]
    );
    Ok(())
}
