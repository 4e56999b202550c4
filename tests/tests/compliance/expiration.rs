//! `kubeadm certs check-expiration` and `rescue certs --json` say the same of the same tree.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use tests::programs;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::{Reference, node};

/// Name to (end to the minute as kubeadm prints it or `missing`, CA, externally managed).
type Table = BTreeMap<String, (String, String, String)>;

/// kubeadm's own table: columns are found by the header's words.
fn theirs(text: &str) -> Result<Table> {
    let mut table = Table::new();
    let mut columns: Option<(bool, [usize; 3])> = None;
    for line in text.lines() {
        if line.starts_with("CERTIFICATE") {
            let at = |word: &str| line.find(word).with_context(|| format!("no column {word}"));
            let leaves = !line.starts_with("CERTIFICATE AUTHORITY");
            let authority = if leaves {
                at("CERTIFICATE AUTHORITY")?
            } else {
                0
            };
            columns = Some((leaves, [at("EXPIRES")?, authority, at("EXTERNALLY")?]));
        } else if let (Some((leaves, [expires, authority, external])), false) =
            (columns, line.trim().is_empty())
        {
            let word = |from: usize| {
                line.get(from..)
                    .unwrap_or_default()
                    .split("  ")
                    .next()
                    .unwrap_or_default()
                    .trim()
            };
            let name = word(0);
            if let Some(name) = name.strip_prefix("!MISSING! ") {
                table.insert(
                    name.to_owned(),
                    ("missing".to_owned(), String::new(), String::new()),
                );
                continue;
            }
            let ca = if leaves { word(authority) } else { "" };
            table.insert(
                name.to_owned(),
                (
                    word(expires).to_owned(),
                    ca.to_owned(),
                    word(external).to_owned(),
                ),
            );
        }
    }
    Ok(table)
}

fn ours(root: &Path) -> Result<Table> {
    let said = programs::rescue(["certs", "--json", "--root"])
        .arg(root)
        .run()?
        .json()?;
    let rows = said["nodes"][0]["certificates"]
        .as_array()
        .context("no certificates")?
        .clone();
    let mut table = Table::new();
    for row in rows {
        let word = |field: &str| row[field].as_str().unwrap_or_default().to_owned();
        let end = match row["expires"].as_str() {
            Some(end) => as_kubeadm(OffsetDateTime::parse(end, &Rfc3339)?),
            None => word("verdict"),
        };
        let external = if row["externally_managed"] == true {
            "yes"
        } else {
            "no"
        };
        table.insert(word("name"), (end, word("authority"), external.to_owned()));
    }
    Ok(table)
}

/// `Feb 23, 2024 08:02 UTC`.
fn as_kubeadm(end: OffsetDateTime) -> String {
    let month: String = end.month().to_string().chars().take(3).collect();
    format!(
        "{month} {:02}, {} {:02}:{:02} UTC",
        end.day(),
        end.year(),
        end.hour(),
        end.minute()
    )
}

fn agree(kubeadm: &str, root: &Path) -> Result<()> {
    let (theirs, ours) = (theirs(kubeadm)?, ours(root)?);
    ensure!(
        theirs.len() == 13,
        "kubeadm lists ten leaves and three CAs: {theirs:#?}"
    );
    for (name, said) in &theirs {
        let mine = ours
            .get(name)
            .with_context(|| format!("rescue does not list {name}: {ours:#?}"))?;
        ensure!(
            mine.0 == said.0,
            "{name} ends {} for kubeadm and {} for rescue",
            said.0,
            mine.0
        );
        if said.0 == "missing" {
            continue;
        }
        // 1.20 leaves the CA of kubeconfigs empty; from 1.21 on it is `ca`, as here.
        let ca = if name.ends_with(".conf") {
            "ca"
        } else {
            &said.1
        };
        ensure!(
            mine.1 == ca,
            "{name} belongs to {ca} for kubeadm and to {} for rescue",
            mine.1
        );
        ensure!(
            mine.2 == said.2,
            "{name}: externally managed {} for kubeadm, {} for rescue",
            said.2,
            mine.2
        );
    }
    Ok(())
}

#[test]
fn check_expiration_agrees() -> Result<()> {
    let reference = Reference::get()?;
    let (before, after) = (node()?, reference.renewed()?);
    agree(&reference.expiration("before")?, before.path()).context("before")?;
    agree(&reference.expiration("after")?, after.path()).context("after")?;
    // The comparison itself can fail.
    ensure!(
        agree(&reference.expiration("after")?, before.path()).is_err(),
        "any two tables agree"
    );
    for gone in [
        "pki/front-proxy-ca.key",
        "pki/etcd/peer.crt",
        "scheduler.conf",
    ] {
        fs::remove_file(after.path().join("etc/kubernetes").join(gone))?;
    }
    agree(&reference.expiration("odd")?, after.path()).context("an external CA and missing files")
}
