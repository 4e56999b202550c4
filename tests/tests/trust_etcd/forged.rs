//! Disks that share a key, or where there is no TLS: then a member's own list decides. And honest
//! repairs beside them.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use tests::etcd::forge::MEMBER;

use super::parties::{
    Honest, PKI, copy, give_keys, hostile, hostile_roots, is_clean, rescue, sums, tls,
};

/// With a leaf of the etcd CA that looks like a member's, as some installers give it to each node.
fn with_leaf(roots: &[PathBuf], honest: &Honest) -> Result<()> {
    for root in roots {
        fs::create_dir_all(root.join(PKI))?;
        fs::copy(
            honest.authority.certificate(),
            root.join(PKI).join("ca.crt"),
        )?;
        for name in ["peer", "server"] {
            honest
                .authority
                .leaf(&root.join(PKI), name, "/CN=etcd-member-worker", MEMBER)?;
        }
    }
    Ok(())
}

#[test]
fn disks_that_its_list_does_not_name_replace_no_healthy_member() -> Result<()> {
    for uses_tls in [true, false] {
        let honest = Honest::new(1, uses_tls)?;
        let master = honest.root(0);
        let before = sums(&master)?;
        let cases: [(&[&str], bool, bool); 4] = [
            (&["worker1"], true, false),
            (&["worker1"], false, false),
            (&["worker1", "worker2"], false, false),
            (&["worker1", "worker2"], false, true),
        ];
        for (names, is_learner, keeps_id) in cases {
            let what =
                || format!("TLS {uses_tls}: {names:?}, learner {is_learner}, own ID {keeps_id}");
            let cluster = hostile(&honest, names, is_learner, keeps_id).with_context(what)?;
            let roots = hostile_roots(&cluster, &if uses_tls { tls() } else { Vec::new() })?;
            if uses_tls {
                with_leaf(&roots, &honest)?;
            }
            let theirs = || {
                roots
                    .iter()
                    .map(|root| sums(root))
                    .collect::<Result<Vec<_>>>()
            };
            let untouched = theirs()?;
            let mut disks: Vec<&Path> = roots.iter().map(PathBuf::as_path).collect();
            for at in [0, disks.len()] {
                disks.insert(at, &master);
                let ran = rescue(
                    &["repair", "--yes", "--accept-loss", "--only", "etcd"],
                    &disks,
                )?;
                ensure!(ran.code == 3, "{}: {}", what(), ran.transcript());
                ensure!(
                    ran.stderr.contains("list it as a member")
                        || ran.stderr.contains("list them as a member"),
                    "{}: {}",
                    what(),
                    ran.transcript()
                );
                ensure!(
                    sums(&master)? == before && theirs()? == untouched,
                    "{}: {}",
                    what(),
                    ran.transcript()
                );
                disks.remove(at);
            }
            // With its database damaged it gets none of theirs.
            let damaged = copy(&master, &honest.cluster.folder().join("damaged"))?;
            tests::etcd::files::cut(
                &tests::etcd::files::database(&damaged.join("var/lib/etcd")),
                8192,
            )?;
            disks.push(&damaged);
            let ran = rescue(
                &["repair", "--yes", "--accept-loss", "--only", "etcd"],
                &disks,
            )?;
            ensure!(
                is_clean(&damaged)? && theirs()? == untouched,
                "{}: {}",
                what(),
                ran.transcript()
            );
        }
    }
    Ok(())
}

#[test]
fn a_forged_member_is_left_out_and_the_others_are_repaired() -> Result<()> {
    for uses_tls in [true, false] {
        let mut honest = Honest::new(3, uses_tls)?;
        let cluster = hostile(&honest, &["worker1"], false, false)?;
        let worker = hostile_roots(&cluster, &if uses_tls { tls() } else { Vec::new() })?
            .pop()
            .context("a worker")?;
        let roots: Vec<PathBuf> = (0..3).map(|number| honest.root(number)).collect();
        fs::remove_dir_all(roots[2].join("var/lib/etcd/member"))?;
        let before = sums(&worker)?;
        let disks = [&*worker, &*roots[0], &*roots[1], &*roots[2]];
        let ran = rescue(&["repair", "--yes", "--only", "etcd"], &disks)?;
        // Something was done, and something refused.
        ensure!(
            ran.code == 4 && ran.stdout.contains("G1: "),
            "{}",
            ran.transcript()
        );
        ensure!(
            ran.stdout.contains("worker1 (") && ran.stdout.contains("left out"),
            "{}",
            ran.transcript()
        );
        ensure!(
            !ran.stdout.contains("hold something else"),
            "{}",
            ran.transcript()
        );
        ensure!(sums(&worker)? == before, "{}", ran.transcript());
        for root in &roots {
            ensure!(is_clean(root)?, "{}", ran.transcript());
        }
        honest.cluster.run()?;
        let (keys, _) = honest.cluster.keys(2)?;
        ensure!(
            keys.iter()
                .filter(|key| key.key.starts_with("/registry/honest/"))
                .count()
                == 20,
            "{keys:?}"
        );
        honest.cluster.kill()?;
    }
    Ok(())
}

#[test]
fn a_control_plane_that_lost_its_etcd_comes_back_by_its_keys_and_without_them_by_the_user_s_word()
-> Result<()> {
    let mut honest = Honest::new(3, true)?;
    let roots: Vec<PathBuf> = (0..3).map(|number| honest.root(number)).collect();
    let disks = [&*roots[0], &*roots[1], &*roots[2]];
    fs::remove_dir_all(roots[2].join("var/lib/etcd/member"))?;
    let with_keys = rescue(&["repair", "--yes", "--dry-run", "--only", "etcd"], &disks)?;
    ensure!(
        with_keys.stdout.contains("G1: ") && !with_keys.stderr.contains("--trust"),
        "{}",
        with_keys.transcript()
    );
    fs::remove_dir_all(roots[2].join(PKI))?;
    let refused = rescue(&["repair", "--yes", "--only", "etcd"], &disks)?;
    let trust = roots[2].display().to_string();
    ensure!(
        refused.code == 3 && refused.stderr.contains(&format!("--trust {trust}")),
        "{}",
        refused.transcript()
    );
    let ran = rescue(
        &["repair", "--yes", "--only", "etcd", "--trust", &trust],
        &disks,
    )?;
    ensure!(
        ran.code == 0
            && ran
                .stdout
                .contains("On your word alone, without any proof, m3 ("),
        "{}",
        ran.transcript()
    );
    give_keys(&roots[2], &honest.authority, "m3")?;
    let again = rescue(&["repair", "--yes", "--only", "etcd"], &disks)?;
    ensure!(
        again.code == 0 && again.stdout.contains("othing to"),
        "{}",
        again.transcript()
    );
    honest.cluster.run()?;
    let (keys, _) = honest.cluster.keys(2)?;
    ensure!(keys.len() >= 20, "{keys:?}");
    honest.cluster.kill()
}

/// Machines whose keys are lost, too, but not their etcd: nothing is wrong with it.
#[test]
fn healthy_members_that_lost_their_keys_are_left_as_they_are() -> Result<()> {
    let honest = Honest::new(3, true)?;
    let roots: Vec<PathBuf> = (0..3).map(|number| honest.root(number)).collect();
    fs::remove_dir_all(roots[1].join(PKI))?;
    let ran = rescue(
        &["repair", "--yes", "--only", "etcd"],
        &[&roots[0], &roots[1], &roots[2]],
    )?;
    ensure!(
        ran.code == 0 && !ran.stderr.contains("refused"),
        "{}",
        ran.transcript()
    );
    Ok(())
}
