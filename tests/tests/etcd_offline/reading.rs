//! Members, revisions, hashes and keys of real clusters, killed in the middle of their work.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use tests::etcd::{Cluster, Key, Version};
use tests::{Cmd, rescue_binary};

fn rescue(command: &str, data_dirs: &[&Path]) -> Cmd {
    let arguments = data_dirs
        .iter()
        .flat_map(|dir| [Path::new("--data-dir"), *dir]);
    Cmd::new(rescue_binary())
        .args(["etcd", command, "--json"])
        .args(arguments)
}

fn keys(data_dir: &Path) -> Result<(Vec<Key>, i64)> {
    let answer = rescue("keys", &[data_dir]).ok()?.json()?;
    let number = |entry: &Value, name: &str| entry[name].as_i64().unwrap_or(-1);
    let key = |entry: &Value| Key {
        key: entry["key"].as_str().unwrap_or_default().to_owned(),
        create: number(entry, "create_revision"),
        modified: number(entry, "mod_revision"),
        version: number(entry, "version"),
        lease: number(entry, "lease"),
    };
    let all = answer["keys"]
        .as_array()
        .context("keys")?
        .iter()
        .map(key)
        .collect();
    Ok((all, answer["revision"].as_i64().context("a revision")?))
}

/// Something of everything that changes keys: overwriting, deleting, ranges, transactions, leases,
/// compaction.
fn work(cluster: &Cluster) -> Result<()> {
    cluster.put_many("/registry/pods/default/p", 150, "one")?;
    cluster.put_many("/registry/pods/default/p", 40, "two")?;
    cluster
        .ctl(0)
        .args([
            "del",
            "/registry/pods/default/p1",
            "/registry/pods/default/p12",
        ])
        .ok()?;
    cluster.ctl(0).args(["compact", "5"]).ok()?;
    let lease = cluster.ctl(0).args(["lease", "grant", "600"]).ok()?.stdout;
    let lease = lease
        .split_whitespace()
        .nth(1)
        .context("a lease")?
        .to_owned();
    cluster
        .ctl(0)
        .args(["put", "--lease", &lease, "/registry/events/e", "leased"])
        .ok()?;
    cluster.ctl(0).args(["put", "kept", "1"]).ok()?;
    cluster.ctl(0).args(["put", "kept", "2"]).ok()?;
    // The last writes are in the log only: the database is written every 100 ms.
    let script = "mod(\"kept\") > \"0\"\nval(\"kept\") = \"2\"\n\nput kept 3\nput new 1\n\
        del /registry/pods/default/p3\n\nput kept no\n\n";
    cluster.ctl(0).arg("txn").stdin(script).ok()?;
    cluster
        .ctl(0)
        .args(["txn"])
        .stdin("ver(\"nothing\") > \"0\"\n\nput no 1\n\nget kept\n\n")
        .ok()?;
    cluster.ctl(0).args(["lease", "revoke", &lease]).ok()?;
    cluster.put("last", "acknowledged")
}

#[test]
fn three_killed_members_are_read_as_they_say_themselves() -> Result<()> {
    for version in Version::all()? {
        let mut cluster = Cluster::start(&version, 3, 100)?;
        work(&cluster)?;
        for number in 0..120 {
            cluster.put_many(&format!("more{number}/"), 1, "x")?;
            if number == 40 {
                cluster.ctl(0).args(["compact", "20"]).ok()?;
            }
        }
        let members = cluster.list()?;
        let (acknowledged, revision) = cluster.keys(0)?;
        cluster.kill()?;

        let folders: Vec<PathBuf> = cluster
            .members
            .iter()
            .map(|member| member.data_dir.clone())
            .collect();
        let folders: Vec<&Path> = folders.iter().map(PathBuf::as_path).collect();
        let status = rescue("status", &folders).ok()?.json()?;
        let etcd = &status["etcd"];
        for (number, folder) in folders.iter().enumerate() {
            let member = &etcd["members"][number];
            ensure!(member["boots"] == true, "{member:#}");
            ensure!(
                member["log"]["snapshot"].as_u64() > Some(0),
                "no snapshot was made: {member:#}"
            );
            let mut voters: Vec<_> = member["voters"]
                .as_array()
                .context("voters")?
                .iter()
                .map(|voter| {
                    let text = |name: &str| voter[name].as_str().unwrap_or_default().to_owned();
                    let urls = voter["peer_urls"].as_array().into_iter().flatten();
                    (
                        text("id"),
                        text("name"),
                        urls.filter_map(Value::as_str)
                            .map(str::to_owned)
                            .collect::<Vec<_>>(),
                    )
                })
                .collect();
            voters.sort();
            ensure!(
                voters == members,
                "{}: {voters:?} instead of {members:?}",
                version.name
            );
            ensure!(member["name"] == format!("m{}", number + 1), "{member:#}");
            // What was acknowledged is on two members at least; on each the log holds all of it or
            // a beginning.
            let (held, at) = keys(folder)?;
            ensure!(
                at <= revision && (at < revision || held == acknowledged),
                "{} at {at} of {revision}",
                version.name
            );
        }
        let newest = etcd["newest"]["member"]
            .as_u64()
            .context("a newest member")? as usize;
        let (held, at) = keys(folders[newest])?;
        ensure!(
            at == revision,
            "{}: the newest is at {at}, acknowledged was {revision}",
            version.name
        );
        ensure!(held == acknowledged, "{}: keys differ", version.name);
        for agreement in etcd["agreement"].as_array().context("agreement")? {
            ensure!(agreement["verdict"]["same"].is_object(), "{agreement:#}");
        }

        // The same members, started again, give the same hashes and keys.
        cluster.run()?;
        for number in 0..folders.len() {
            let hash = &etcd["members"][number]["database"]["hash"];
            let at = hash["revision"].as_i64().context("a hash")?;
            let (real, compacted) = cluster.hash(number, at)?;
            ensure!(
                hash["compact_revision"].as_i64() == Some(compacted),
                "{hash:#} at {compacted}"
            );
            ensure!(
                hash["hash"].as_u64() == Some(real),
                "{}: {hash:#} instead of {real}",
                version.name
            );
        }
        ensure!(
            cluster.keys(0)? == (acknowledged, revision),
            "{}: etcd lost something by itself",
            version.name
        );
    }
    Ok(())
}

#[test]
fn a_running_member_is_not_read() -> Result<()> {
    let cluster = Cluster::start(&Version::debian(), 1, 10_000)?;
    let ran = rescue("status", &[&cluster.members[0].data_dir]).run()?;
    ensure!(
        ran.code == 3 && ran.stderr.contains("etcd is running"),
        "{}",
        ran.transcript()
    );
    Ok(())
}

#[test]
fn a_database_alone_is_what_etcdutl_says() -> Result<()> {
    let version = Version::wheel()?;
    let mut cluster = Cluster::start(&version, 1, 10_000)?;
    work(&cluster)?;
    let (real, revision) = cluster.keys(0)?;
    cluster.kill()?;
    let folder = &cluster.members[0].data_dir;
    let status = rescue("status", &[folder]).ok()?.json()?;
    let database = &status["etcd"]["members"][0]["database"];
    let copy = tempfile::NamedTempFile::new()?;
    std::fs::copy(folder.join("member/snap/db"), copy.path())?;
    let said = Cmd::new(version.program("etcdutl"))
        .args(["snapshot", "status", "-w", "json"])
        .arg(copy.path())
        .ok()?
        .json()?;
    ensure!(
        database["revision"] == said["revision"],
        "{database:#} {said:#}"
    );
    ensure!(
        database["size"].as_u64() >= said["totalSize"].as_u64(),
        "{database:#} {said:#}"
    );
    ensure!(keys(folder)? == (real, revision), "keys differ");
    let got = Cmd::new(rescue_binary())
        .args(["etcd", "get", "--raw", "--data-dir"])
        .arg(folder)
        .arg("last")
        .ok()?;
    ensure!(got.stdout == "acknowledged", "{}", got.transcript());
    Ok(())
}
