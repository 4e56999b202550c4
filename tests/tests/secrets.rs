//! No key in any output: everything that rescue prints about a real node, healthy and damaged, is
//! searched for the words of every private key that was on it before, between and after.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use anyhow::{Result, ensure};
use base64::Engine as _;
use tests::{fixtures, rescue};

/// Shorter words occur by chance.
const TELLING: usize = 20;

/// The words of the private keys in a file: lines of PEM bodies, as they stand and as a kubeconfig
/// carries them.
fn words_of(text: &str, words: &mut BTreeSet<String>) {
    for block in text
        .split("-----BEGIN ")
        .skip(1)
        .filter(|block| block.contains("PRIVATE KEY-----"))
    {
        let body = block.split_once("-----").map_or("", |(_, rest)| rest);
        let lines = body
            .split("-----END")
            .next()
            .unwrap_or_default()
            .split_whitespace();
        words.extend(
            lines
                .filter(|line| line.len() >= TELLING)
                .map(str::to_owned),
        );
    }
    for line in text
        .lines()
        .filter_map(|line| line.trim().strip_prefix("client-key-data: "))
    {
        words.extend(
            line.as_bytes()
                .chunks_exact(2 * TELLING)
                .map(|part| String::from_utf8_lossy(part).into_owned()),
        );
        if let Ok(pem) = base64::engine::general_purpose::STANDARD.decode(line.trim()) {
            words_of(&String::from_utf8_lossy(&pem), words);
        }
    }
}

fn collect(folder: &Path, words: &mut BTreeSet<String>) -> Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() && !path.is_symlink() {
            collect(&path, words)?;
        } else if path.is_file() {
            words_of(&String::from_utf8_lossy(&fs::read(&path)?), words);
        }
    }
    Ok(())
}

/// Adds the words of all keys that are on the node now.
fn keys_of(root: &Path, words: &mut BTreeSet<String>) -> Result<()> {
    for folder in ["etc/kubernetes", "var/lib/kubelet/pki", "root/.kube"] {
        collect(&root.join(folder), words)?;
    }
    Ok(())
}

fn found<'a>(text: &str, words: &'a BTreeSet<String>) -> Option<&'a String> {
    words.iter().find(|word| text.contains(word.as_str()))
}

/// Runs everything that looks, then a repair; all that was printed.
fn told(root: &str) -> Result<String> {
    let mut all = String::new();
    for line in [
        "inspect",
        "inspect --details",
        "inspect --json",
        "certs",
        "certs --details",
        "certs --json",
        "repair --dry-run",
        "repair --dry-run --json",
        "repair --yes --only certificates --only admin-kubeconfig",
        "runs",
        "runs --json",
    ] {
        let words = line.split(' ').chain(["--root", root]);
        let ran = rescue(words).run()?;
        all.push_str(&ran.transcript());
    }
    Ok(all)
}

#[test]
fn no_key_is_ever_told() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let root = folder.path();
    fixtures::unpack_control_plane(root)?;
    let at = root.to_string_lossy().into_owned();
    let mut words = BTreeSet::new();
    keys_of(root, &mut words)?;
    ensure!(
        words.len() > 100,
        "only {} words: the search would find nothing",
        words.len()
    );

    let mut all = told(&at)?;
    keys_of(root, &mut words)?;

    // Damage that puts keys where something else is read.
    let kubernetes = root.join("etc/kubernetes");
    let half = fs::read(kubernetes.join("pki/apiserver.key"))?;
    fs::write(
        kubernetes.join("pki/apiserver.key"),
        &half[..half.len() / 2],
    )?;
    fs::copy(
        kubernetes.join("pki/sa.key"),
        kubernetes.join("pki/front-proxy-client.crt"),
    )?;
    fs::copy(
        kubernetes.join("pki/ca.crt"),
        kubernetes.join("pki/etcd/peer.key"),
    )?;
    for (file, before) in [("scheduler.conf", "{["), ("admin.conf", "\t\"")] {
        let text = fs::read_to_string(kubernetes.join(file))?;
        fs::write(
            kubernetes.join(file),
            text.replace("client-key-data: ", &format!("client-key-data: {before}")),
        )?;
    }
    all.push_str(&told(&at)?);
    keys_of(root, &mut words)?;
    all.push_str(&rescue(["undo", "--yes", "--root", &at]).run()?.transcript());

    ensure!(
        all.contains("front-proxy-client"),
        "nothing was told:\n{all}"
    );
    // The search can find: the same words in the same text.
    let planted = words
        .iter()
        .nth(words.len() / 2)
        .cloned()
        .unwrap_or_default();
    ensure!(
        found(&format!("{all}{planted}"), &words).is_some(),
        "a planted word was not found"
    );
    let leaked = found(&all, &words);
    ensure!(
        leaked.is_none(),
        "part of a key was printed: {}…",
        leaked.map_or("", |word| &word[..6])
    );
    Ok(())
}

#[test]
fn the_search_knows_every_form() {
    let pem = "-----BEGIN RSA PRIVATE KEY-----\nMIIEowIBAAKCAQEAlx1dAAAAAAAAAAAAAAAA\nshort\n\
        -----END RSA PRIVATE KEY-----\n";
    let data = base64::engine::general_purpose::STANDARD.encode(pem);
    let mut words = BTreeSet::new();
    words_of(
        &format!("users:\n- user:\n    client-key-data: {data}\n"),
        &mut words,
    );
    assert!(found("saw MIIEowIBAAKCAQEAlx1dAAAAAAAAAAAAAAAA here", &words).is_some());
    assert!(found(&format!("saw {data}"), &words).is_some());
    assert!(found("saw short", &words).is_none());
}
