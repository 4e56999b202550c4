//! The same expired tree, renewed by both.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use tests::{Cmd, programs, x509};

use crate::{CONFIGS, LEAVES, Reference, certificate, node, renew};

/// Every difference that there may be between a leaf of kubeadm 1.20.2 and ours: the field,
/// kubeadm's value, ours.
const DELIBERATE: &[(&str, &str, &str)] = &[("basicConstraints", "absent", "critical 3000")];

/// The order in which Go writes extensions.
const GO: [&str; 6] = [
    "keyUsage",
    "extendedKeyUsage",
    "basicConstraints",
    "subjectKeyIdentifier",
    "authorityKeyIdentifier",
    "subjectAltName",
];

#[test]
fn every_field_is_kubeadms_but_for_the_deliberate_differences() -> Result<()> {
    let theirs = Reference::get()?.renewed()?;
    let ours = node()?;
    renew(ours.path(), &[])?;
    for name in LEAVES.iter().chain(&CONFIGS) {
        let (old, new) = (
            certificate(theirs.path(), name)?,
            certificate(ours.path(), name)?,
        );
        ensure!(
            x509::labels(&old) == x509::labels(&new),
            "{name}: {:?}",
            x509::labels(&new)
        );
        let (old, new) = (x509::fields(&old)?, x509::fields(&new)?);
        ensure!(
            old.len() >= 12,
            "{name} has too few fields to mean anything: {old:?}"
        );
        let found = differences(&old, &new);
        let wanted: Vec<_> = DELIBERATE
            .iter()
            .map(|(f, t, o)| format!("{f}: {t} -> {o}"))
            .collect();
        ensure!(found == wanted, "{name}: {found:#?}");
        in_gos_order(&new).with_context(|| (*name).to_owned())?;
        in_gos_order(&old).with_context(|| (*name).to_owned())?;
    }
    Ok(())
}

/// `field: theirs -> ours` for each that differs; the order of extensions apart.
pub fn differences(theirs: &x509::Fields, ours: &x509::Fields) -> Vec<String> {
    let names: std::collections::BTreeSet<&String> = theirs.keys().chain(ours.keys()).collect();
    let value = |fields: &x509::Fields, name: &String| {
        fields.get(name).cloned().unwrap_or_else(|| "absent".into())
    };
    let pairs = names
        .into_iter()
        .map(|name| (name, value(theirs, name), value(ours, name)));
    pairs
        .filter(|(name, theirs, ours)| *name != "order of extensions" && theirs != ours)
        .map(|(name, theirs, ours)| format!("{name}: {theirs} -> {ours}"))
        .collect()
}

/// Insists that the extensions follow one another as Go's crypto/x509 writes them.
pub fn in_gos_order(fields: &x509::Fields) -> Result<()> {
    let order: Vec<&str> = fields
        .get("order of extensions")
        .context("no extensions")?
        .split(' ')
        .collect();
    let expected: Vec<&str> = GO.into_iter().filter(|name| order.contains(name)).collect();
    ensure!(order == expected, "extensions in the order {order:?}");
    Ok(())
}

/// Kind of file, mode and owner of everything below /etc/kubernetes.
fn listing(root: &Path) -> Result<BTreeMap<String, String>> {
    let listed = Cmd::new("find")
        .dir(root)
        .args(["etc/kubernetes", "-printf", "%p\\t%y %m %U:%G %l\\n"])
        .ok()?
        .stdout;
    Ok(listed
        .lines()
        .filter_map(|line| line.split_once('\t'))
        .map(|(a, b)| (a.to_owned(), b.to_owned()))
        .collect())
}

#[test]
fn files_modes_owners_and_kinds_of_pem_are_kubeadms() -> Result<()> {
    let theirs = Reference::get()?.renewed()?;
    let ours = node()?;
    let before = node()?;
    renew(ours.path(), &[])?;
    let listed = listing(theirs.path())?;
    ensure!(listed.len() > 30, "{listed:#?}");
    ensure!(
        listed == listing(ours.path())?,
        "{:#?}",
        listing(ours.path())?
    );
    let mut changed = Vec::new();
    for (path, _) in listed.iter().filter(|(_, kind)| kind.starts_with('f')) {
        let read = |root: &Path| fs::read_to_string(root.join(path)).with_context(|| path.clone());
        let (old, kubeadm, rescue) = (
            read(before.path())?,
            read(theirs.path())?,
            read(ours.path())?,
        );
        ensure!(x509::labels(&kubeadm) == x509::labels(&rescue), "{path}");
        ensure!(
            (kubeadm == old) == (rescue == old),
            "only one of the two changed {path}"
        );
        if kubeadm != old {
            changed.push(path.as_str());
        }
        if path.ends_with(".conf") {
            // Every line but the two with the new certificate and key.
            let rest = |text: &str| -> Vec<String> {
                let kept = text
                    .lines()
                    .filter(|line| !line.trim().starts_with("client-"));
                kept.map(str::to_owned).collect()
            };
            ensure!(
                rest(&kubeadm) == rest(&rescue),
                "{path}:\n{:#?}",
                rest(&rescue)
            );
        }
    }
    ensure!(
        changed.len() == 2 * LEAVES.len() + CONFIGS.len(),
        "{changed:?}"
    );
    Ok(())
}

#[test]
fn what_only_rescue_renews() -> Result<()> {
    let theirs = Reference::get()?.renewed()?;
    let ours = node()?;
    renew(ours.path(), &[])?;
    // The kubelet's certificate is the one that kubeadm leaves expired: inspecting its tree says
    // so, and nothing else.
    let left = programs::rescue(["inspect", "--json", "--root"])
        .arg(theirs.path())
        .run()?
        .json()?;
    let rows = left["nodes"][0]["certificates"]
        .as_array()
        .context("no certificates")?;
    let bad: Vec<&str> = rows
        .iter()
        .filter(|row| row["verdict"] == "expired")
        .filter_map(|row| row["name"].as_str())
        .collect();
    ensure!(
        bad.iter().all(|name| name.starts_with("kubelet")) && bad.contains(&"kubelet.conf"),
        "{bad:?}"
    );
    // Beside the old dated file there is one more, private from the start.
    let pki = ours.path().join("var/lib/kubelet/pki");
    let dated = |entry: &fs::DirEntry| {
        entry
            .file_name()
            .to_string_lossy()
            .starts_with("kubelet-client-20")
    };
    let files: Vec<_> = fs::read_dir(&pki)?
        .filter_map(Result::ok)
        .filter(dated)
        .collect();
    ensure!(files.len() == 2, "{files:?}");
    for file in files {
        ensure!(file.metadata()?.mode() & 0o7777 == 0o600, "{file:?}");
    }
    Ok(())
}
