//! Who gets a new key: the administrator's own copies of admin.conf and nobody else's, and files
//! that are closed to others whatever the old ones were. On folders, with real `chmod` and
//! `setfacl`; needs root.

mod pki_support;

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown, symlink};
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use pki_support::cluster::{CA, CLIENT, Cluster, P256, RSA, SERVER, base64, decoded, inline};
use pki_support::{open, told};
use rescue::base::severity::Severity;
use rescue::base::ui::Silent;
use rescue::finding::{Context, Facts, Finding};
use rescue::node::Node;
use rescue::plan::{self, Plan};
use rescue::repair::transaction::{RunInfo, apply};
use rescue::repair::undo;
use rescue::settings::Settings;
use tests::Cmd;
use time::{Duration, OffsetDateTime};

const ADMIN: &str = "/O=system:masters/CN=kubernetes-admin";
const CHECKS: [&str; 4] = [
    "shared-keys",
    "authorities",
    "certificates",
    "admin-kubeconfig",
];

/// Leaves live for a day; this is a month later.
fn later() -> Settings {
    let only = CHECKS.map(str::to_owned).to_vec();
    Settings {
        now: OffsetDateTime::now_utc() + Duration::days(30),
        only,
        ..Settings::default()
    }
}

/// Repairs the folder; gives what was found and what was planned.
fn repair(root: &Path) -> Result<(Vec<Finding>, Plan)> {
    let (writable, settings) = (open(root)?, later());
    let node = Node::read(writable.guest());
    let context = Context {
        guest: writable.guest(),
        node: &node,
        settings: &settings,
        peers: &[],
        ui: &Silent,
        facts: &Facts::default(),
    };
    let findings = plan::findings(&context);
    let plan = plan::plan(&context, &[]);
    ensure!(plan.dropped.is_empty(), "{:?}", plan.dropped);
    apply(
        &writable,
        plan.prepared.clone(),
        &RunInfo::new(settings.now, Vec::new()),
        &Silent,
    )?;
    writable.close()?;
    Ok((findings, plan))
}

fn take_back(root: &Path) -> Result<()> {
    let writable = open(root)?;
    undo(&writable, None, &Silent)?;
    writable.close()
}

/// Every name with inode, attributes, access list and content, but for the store of runs. Folders
/// without their times: names came and went in them.
fn state(root: &Path) -> Result<String> {
    let script = "find . -path ./var/lib/rescue -prune -o -type d -printf '%p %i %m %U %G\\n' -o \
        -printf '%p %i %m %U %G %s %T@ %l\\n' | sort; getfacl -R -n -p etc home root srv .kube; \
        find etc home root srv .kube -type f | sort | xargs sha256sum";
    Ok(Cmd::new("sh").args(["-c", script]).dir(root).run()?.stdout)
}

fn setfacl(entry: &str, path: &Path) -> Result<()> {
    Cmd::new("setfacl").args(["-m", entry]).arg(path).ok()?;
    Ok(())
}

/// The entries of an access list that `ls` cannot show; empty where there is no list.
fn named_entries(path: &Path) -> Result<Vec<String>> {
    let list = Cmd::new("getfacl")
        .args(["-n", "-c", "-p"])
        .arg(path)
        .ok()?
        .stdout;
    let is_named = |line: &&str| {
        line.starts_with("mask") || line.split(':').nth(1).is_some_and(|id| !id.is_empty())
    };
    Ok(list.lines().filter(is_named).map(str::to_owned).collect())
}

fn mode(path: &Path) -> Result<u32> {
    Ok(fs::metadata(path)
        .with_context(|| path.display().to_string())?
        .mode()
        & 0o7777)
}

fn set_mode(path: &Path, mode: u32) -> Result<()> {
    Ok(fs::set_permissions(path, fs::Permissions::from_mode(mode))?)
}

/// Line of the key in a kubeconfig, and the key as PEM.
fn key_in(config: &Path) -> Result<(String, Vec<u8>)> {
    let text = fs::read_to_string(config)?;
    let line = text
        .lines()
        .find_map(|line| line.trim().strip_prefix("client-key-data: "))
        .context("no key")?;
    Ok((line.to_owned(), decoded(line)?))
}

/// A home with everything in it its owner's.
fn own(cluster: &Cluster, home: &str, uid: u32) -> Result<()> {
    Cmd::new("chown")
        .args(["-hR", &format!("{uid}:{uid}"), home])
        .dir(cluster.root())
        .ok()?;
    Ok(())
}

struct Administrators {
    cluster: Cluster,
    /// An honest copy of admin.conf.
    copy: String,
    certificate: String,
}

/// A control plane whose administrator's certificate ends in a day.
fn administrators() -> Result<Administrators> {
    let cluster = Cluster::control_plane(P256, "/CN=kubernetes", CA, 3650, "1")?;
    let admin = cluster.client("ca", RSA, ADMIN)?;
    let copy = cluster.kubeconfig("kubernetes-admin", &inline(&admin))?;
    cluster.write("etc/kubernetes/admin.conf", &copy)?;
    set_mode(&cluster.root().join("etc/kubernetes/admin.conf"), 0o600)?;
    Ok(Administrators {
        cluster,
        copy,
        certificate: base64(admin.0.as_bytes()),
    })
}

/// The new key, as it is in admin.conf, must not be in any of these files, in either form.
fn nobody_else_has(key: &(String, Vec<u8>), root: &Path, below: &str) -> Result<()> {
    let pem = String::from_utf8(key.1.clone())?;
    let words: Vec<&str> = vec![
        &key.0,
        pem.trim(),
        pem.lines().nth(3).context("a key of several lines")?,
    ];
    for word in words {
        let found = Cmd::new("grep")
            .args(["-rlF", "-e", word, below])
            .dir(root)
            .run()?;
        ensure!(
            found.stdout.is_empty(),
            "the new key is in {}",
            found.stdout
        );
    }
    Ok(())
}

#[test]
fn who_lacks_the_administrators_key_gets_no_new_one() -> Result<()> {
    let Administrators {
        cluster,
        copy,
        certificate,
    } = administrators()?;
    let root = cluster.root();
    let unrelated = cluster.client("ca", RSA, "/O=nobody/CN=eve")?;
    let public = |rest: &str| format!("    client-certificate-data: {certificate}\n{rest}");
    let with_key = public(&format!(
        "    client-key-data: {}\n",
        base64(unrelated.1.as_bytes())
    ));
    let bodies = [
        ("unrelated", with_key),
        ("nokey", public("")),
        (
            "file",
            public("    client-key: /etc/kubernetes/pki/ca.key\n"),
        ),
        ("token", public("    token: abc\n")),
        (
            "certificate",
            public(&format!("    client-key-data: {certificate}\n")),
        ),
    ];
    for (n, (name, body)) in bodies.iter().enumerate() {
        cluster.write(
            &format!("home/{name}/.kube/config"),
            cluster.kubeconfig("kubernetes-admin", body)?,
        )?;
        own(&cluster, &format!("home/{name}"), 2000 + u32::try_from(n)?)?;
    }
    cluster.write("home/ann/.kube/config", &copy)?;
    set_mode(&root.join("home/ann/.kube/config"), 0o600)?;
    own(&cluster, "home/ann", 1000)?;
    let before = state(root)?;

    let (findings, plan) = repair(root)?;
    let new = key_in(&root.join("etc/kubernetes/admin.conf"))?;
    ensure!(
        key_in(&root.join("home/ann/.kube/config"))? == new,
        "the honest twin is refreshed"
    );
    let ann = fs::metadata(root.join("home/ann/.kube/config"))?;
    ensure!((ann.mode() & 0o7777, ann.uid(), ann.gid()) == (0o600, 1000, 1000));
    for (name, body) in &bodies {
        let file = format!("home/{name}/.kube/config");
        ensure!(
            fs::read_to_string(root.join(&file))?.ends_with(body),
            "{name} was changed"
        );
        nobody_else_has(&new, root, &format!("home/{name}"))?;
        let finding = findings
            .iter()
            .find(|finding| finding.title.contains(&file))
            .context("not named")?;
        ensure!(
            finding.remedies.is_empty() && finding.severity == Severity::Note,
            "{}",
            told(&findings)
        );
        let advice = finding.advice.join("\n");
        ensure!(
            advice.contains("sudo cp /etc/kubernetes/admin.conf ~/.kube/config"),
            "{advice}"
        );
    }
    ensure!(
        plan.steps.iter().all(|step| step.remarks.is_empty()),
        "{:?}",
        plan.steps
    );
    take_back(root)?;
    let after = state(root)?;
    ensure!(after == before, "undo left\n{after}\ninstead of\n{before}");
    Ok(())
}

#[test]
fn links_strangers_files_and_folders_of_the_system_get_no_key() -> Result<()> {
    let Administrators { cluster, copy, .. } = administrators()?;
    let root = cluster.root();
    let homes = ["link", "folder", "foreign", "foreignfolder", "elsewhere"];
    for (n, name) in homes.iter().enumerate() {
        cluster.write(&format!("home/{name}/.kube/config"), &copy)?;
        own(&cluster, &format!("home/{name}"), 2000 + u32::try_from(n)?)?;
    }
    cluster.write("root/.kube/config", &copy)?;
    set_mode(&root.join("root/.kube/config"), 0o600)?;
    fs::remove_file(root.join("home/link/.kube/config"))?;
    symlink("/root/.kube/config", root.join("home/link/.kube/config"))?;
    fs::remove_dir_all(root.join("home/folder/.kube"))?;
    cluster.write("home/elsewhere/shared/config", &copy)?;
    symlink("/home/elsewhere/shared", root.join("home/folder/.kube"))?;
    chown(
        root.join("home/foreign/.kube/config"),
        Some(2999),
        Some(2999),
    )?;
    chown(
        root.join("home/foreignfolder/.kube"),
        Some(2999),
        Some(2999),
    )?;
    fs::remove_file(root.join("home/elsewhere/.kube/config"))?;
    symlink(
        "../../../srv/secret",
        root.join("home/elsewhere/.kube/config"),
    )?;
    cluster.write("srv/secret", &copy)?;
    // What services have as homes, and what climbs.
    for file in [".kube/config", "etc/.kube/config", "srv/eve/.kube/config"] {
        cluster.write(file, &copy)?;
    }
    cluster.write(
        "etc/passwd",
        "a:x:1:1::/:/bin/sh\nb:x:2:2::/etc:/bin/sh\nc:x:3:3::/home/../srv/eve:/bin/sh\n\
         d:x:4:4::relative:/bin/sh\n",
    )?;
    let untouched = ["home", "srv", ".kube", "etc/.kube"];
    let script = format!(
        "find {0} -printf '%p %i %m %U %l\\n' | sort; find {0} -type f | sort | xargs sha256sum",
        untouched.join(" ")
    );
    let before = Cmd::new("sh").args(["-c", &script]).dir(root).ok()?.stdout;

    let (findings, plan) = repair(root)?;
    let new = key_in(&root.join("etc/kubernetes/admin.conf"))?;
    ensure!(
        key_in(&root.join("root/.kube/config"))? == new,
        "root's own file is refreshed, whoever links to it"
    );
    ensure!(
        Cmd::new("sh").args(["-c", &script]).dir(root).ok()?.stdout == before,
        "{}",
        told(&findings)
    );
    for below in untouched {
        nobody_else_has(&new, root, below)?;
    }
    for (file, why) in [
        (
            "/home/link/.kube/config",
            "is a symbolic link, and leads to /root/.kube/config",
        ),
        (
            "/home/folder/.kube/config",
            "/home/folder/.kube is a symbolic link",
        ),
        (
            "/home/foreign/.kube/config",
            "belongs to user 2999, and the home folder to user 2002",
        ),
        ("/home/foreignfolder/.kube/config", "belongs to user 2999"),
        (
            "/home/elsewhere/.kube/config",
            "is a symbolic link, and leads to /srv/secret",
        ),
        ("/.kube/config", "/ is the system's"),
        ("/etc/.kube/config", "/etc is the system's"),
        ("/home/../srv/eve/.kube/config", "with .. in it"),
    ] {
        let finding = findings
            .iter()
            .find(|finding| finding.title.starts_with(&format!("{file}: ")));
        let finding =
            finding.with_context(|| format!("{file} is not named:\n{}", told(&findings)))?;
        let advice = finding.advice.join("\n");
        ensure!(
            finding.remedies.is_empty() && advice.contains(why),
            "{file}: {advice}"
        );
        ensure!(
            advice.contains("sudo cp /etc/kubernetes/admin.conf ~/.kube/config"),
            "{advice}"
        );
    }
    ensure!(plan.steps.len() == 2, "{:?}", plan.steps);
    Ok(())
}

#[test]
fn a_link_to_admin_conf_needs_nothing() -> Result<()> {
    let Administrators { cluster, .. } = administrators()?;
    cluster.link("root/.kube/config", "/etc/kubernetes/admin.conf")?;
    cluster.link("home/ann/.kube/config", "/etc/kubernetes/admin.conf")?;
    let (findings, plan) = repair(cluster.root())?;
    ensure!(
        findings.len() == 1 && plan.steps.len() == 1,
        "{}",
        told(&findings)
    );
    ensure!(
        fs::read_link(cluster.root().join("root/.kube/config"))?
            == Path::new("/etc/kubernetes/admin.conf")
    );
    Ok(())
}

#[test]
fn copies_that_others_can_read_are_closed() -> Result<()> {
    let Administrators { cluster, copy, .. } = administrators()?;
    let root = cluster.root();
    let homes = [
        ("wide", 0o644),
        ("group", 0o640),
        ("all", 0o777),
        ("setuid", 0o4755),
        ("own", 0o600),
        ("fixed", 0o400),
    ];
    let at = |name: &str| root.join(format!("home/{name}/.kube/config"));
    for (name, bits) in homes.into_iter().chain([("list", 0o600)]) {
        cluster.write(&format!("home/{name}/.kube/config"), &copy)?;
        own(&cluster, &format!("home/{name}"), 1000)?;
        set_mode(&at(name), bits)?;
    }
    setfacl("user:1001:r", &at("list"))?;
    // A copy that `sudo cp` made.
    chown(at("wide"), Some(0), Some(0))?;
    let before = state(root)?;
    let (findings, plan) = repair(root)?;
    let new = key_in(&root.join("etc/kubernetes/admin.conf"))?;
    for (name, bits) in homes.into_iter().chain([("list", 0o640)]) {
        ensure!(
            key_in(&at(name))? == new,
            "{name} is not refreshed: {}",
            told(&findings)
        );
        let expected = if name == "fixed" { 0o400 } else { 0o600 };
        ensure!(
            mode(&at(name))? == expected,
            "{name}: {bits:04o} became {:04o}",
            mode(&at(name))?
        );
        ensure!(
            named_entries(&at(name))?.is_empty(),
            "{name}: {:?}",
            named_entries(&at(name))?
        );
        ensure!(fs::metadata(at(name))?.uid() == if name == "wide" { 0 } else { 1000 });
    }
    let remarks: Vec<&String> = plan.steps.iter().flat_map(|step| &step.remarks).collect();
    for line in [
        "/home/wide/.kube/config: mode 0644 becomes 0600: everybody on this node could read the \
         key",
        "/home/group/.kube/config: mode 0640 becomes 0600: its group could read the key",
        "/home/all/.kube/config: mode 0777 becomes 0600: everybody on this node could read the key",
        "/home/setuid/.kube/config: mode 4755 becomes 0600: everybody on this node could read the \
         key",
        "/home/list/.kube/config: mode 0640 becomes 0600",
        "/home/list/.kube/config: its access list is dropped: it let user 1001 read the key",
    ] {
        ensure!(
            remarks.iter().any(|remark| *remark == line),
            "{line:?} is not in {remarks:#?}"
        );
    }
    ensure!(remarks.len() == 6, "{remarks:#?}");
    let wide = findings
        .iter()
        .find(|finding| finding.title.contains("/home/wide"))
        .context("named")?;
    ensure!(
        wide.advice
            .join("\n")
            .contains("sudo chown 1000 /home/wide/.kube/config"),
        "{:?}",
        wide.advice
    );
    take_back(root)?;
    let after = state(root)?;
    ensure!(after == before, "undo left\n{after}\ninstead of\n{before}");
    Ok(())
}

/// apiserver.key, admin.conf and the kubelet's file, each replaced where the old one was open in
/// many ways.
#[test]
fn new_keys_do_not_inherit_what_opened_the_old_ones() -> Result<()> {
    let cluster = Cluster::control_plane(P256, "/CN=kubernetes", CA, 3650, "1")?;
    let root = cluster.root();
    cluster.leaf("apiserver", "ca", P256, "/CN=kube-apiserver", SERVER)?;
    cluster.leaf("apiserver-kubelet-client", "ca", P256, "/CN=x", CLIENT)?;
    let admin = cluster.client("ca", P256, ADMIN)?;
    let config = cluster.kubeconfig("kubernetes-admin", &inline(&admin))?;
    cluster.write("etc/kubernetes/admin.conf", config)?;
    let node = cluster.client("ca", P256, "/O=system:nodes/CN=system:node:node1")?;
    cluster.write(
        "etc/kubernetes/kubelet.conf",
        cluster.kubeconfig("system:node:node1", &inline(&node))?,
    )?;
    fs::create_dir_all(root.join("var/lib/kubelet/pki"))?;
    for folder in [
        "etc/kubernetes/pki",
        "etc/kubernetes",
        "var/lib/kubelet/pki",
        "var/lib/rescue",
        "var/lib",
    ] {
        setfacl("default:user:1000:rwx", &root.join(folder))?;
    }
    let keys = [
        root.join("etc/kubernetes/pki/apiserver.key"),
        root.join("etc/kubernetes/admin.conf"),
    ];
    for (bits, gid, entry, expected) in [
        (0o600, 0, None, 0o600),
        (0o777, 0, None, 0o600),
        (0o4755, 0, None, 0o600),
        (0o640, 0, None, 0o640),
        (0o660, 7, None, 0o640),
        (0o644, 7, None, 0o640),
        (0o600, 7, Some("user:1000:rw"), 0o600),
        (0o640, 7, Some("user:1000:rw,group:1001:r"), 0o640),
    ] {
        for key in &keys {
            Cmd::new("setfacl").arg("-b").arg(key).ok()?;
            chown(key, Some(0), Some(gid))?;
            set_mode(key, bits)?;
            if let Some(entry) = entry {
                setfacl(entry, key)?;
            }
        }
        let (before, old) = (state(root)?, mode(&keys[0])?);
        let (_, plan) = repair(root)?;
        let what = format!("{bits:04o} of group {gid}, {entry:?}");
        for key in &keys {
            ensure!(
                mode(key)? == expected,
                "{what}: {} is {:04o}",
                key.display(),
                mode(key)?
            );
            ensure!(
                named_entries(key)?.is_empty(),
                "{what}: {:?}",
                named_entries(key)?
            );
            ensure!(fs::metadata(key)?.gid() == gid, "{what}");
        }
        let dated =
            fs::read_dir(root.join("var/lib/kubelet/pki"))?.collect::<std::io::Result<Vec<_>>>()?;
        let dated: Vec<_> = dated
            .into_iter()
            .filter(|entry| entry.metadata().is_ok_and(|meta| meta.is_file()))
            .collect();
        ensure!(dated.len() == 1, "{what}: {dated:?}");
        ensure!(
            mode(&dated[0].path())? == 0o600 && named_entries(&dated[0].path())?.is_empty(),
            "{what}"
        );
        let remarks: Vec<&String> = plan.steps.iter().flat_map(|step| &step.remarks).collect();
        let modes = remarks
            .iter()
            .filter(|line| line.contains(&format!("mode {old:04o} becomes {expected:04o}")))
            .count();
        ensure!(
            modes == if old == expected { 0 } else { 2 },
            "{what}: {remarks:#?}"
        );
        let lists = remarks.iter().filter(|line| {
            line.contains("access list is dropped: it let user 1000 read and overwrite")
        });
        ensure!(
            lists.count() == if entry.is_some() { 2 } else { 0 },
            "{what}: {remarks:#?}"
        );
        take_back(root)?;
        let after = state(root)?;
        ensure!(
            after == before,
            "{what}: undo left\n{after}\ninstead of\n{before}"
        );
    }
    Ok(())
}

#[test]
fn folders_that_everybody_may_write_to_are_named() -> Result<()> {
    let Administrators { cluster, .. } = administrators()?;
    set_mode(&cluster.root().join("etc/kubernetes"), 0o777)?;
    let (_, plan) = repair(cluster.root())?;
    let remarks: Vec<&String> = plan.steps.iter().flat_map(|step| &step.remarks).collect();
    ensure!(remarks.len() == 1, "{remarks:#?}");
    ensure!(
        remarks[0].starts_with("/etc/kubernetes stays open to everybody (mode 0777)"),
        "{remarks:#?}"
    );
    ensure!(
        remarks[0].ends_with("chmod o-w /etc/kubernetes"),
        "{remarks:#?}"
    );
    Ok(())
}
