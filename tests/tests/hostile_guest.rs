//! A guest made by an enemy: whatever lies where a file is expected, looking at it ends in time, in
//! little memory, without a crash, and shows nothing that a terminal would obey or a reader be
//! misled by.

#![cfg(feature = "faulty")]

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::Duration;

use anyhow::{Result, ensure};
use tests::command::{Cmd, Ran};
use tests::fixtures;
use tests::programs::faulty_binary;

const NOW: &str = "2026-11-23T08:00:00Z";
/// Address space in KiB: less than the largest file and all that the tricks below would need.
const MEMORY: u64 = 768 << 10;
/// For an unoptimised program on a busy machine; the hangs that this is about would last for ever.
const PATIENCE: Duration = Duration::from_secs(150);

fn look(root: &Path, words: &str) -> Result<Ran> {
    let script = format!(
        "ulimit -v {MEMORY}; exec {} {words} --root {}",
        faulty_binary().display(),
        root.display()
    );
    Cmd::new("sh")
        .args(["-c", &script])
        .env("RESCUE_ABORT_AT", "0")
        .timeout(PATIENCE)
        .run()
}

fn misleads(character: char) -> bool {
    (character.is_control() && !matches!(character, '\n' | '\t'))
        || matches!(
            character,
            '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}'
        )
}

/// Makes a control plane, lets `spoil` change it, and looks at it in every way that reads files.
fn survives(spoil: impl Fn(&Path) -> Result<()>) -> Result<String> {
    let folder = tempfile::tempdir()?;
    fixtures::unpack_small_control_plane(folder.path())?;
    spoil(folder.path())?;
    let mut said = String::new();
    for words in [
        format!("inspect --details --now {NOW}"),
        format!("inspect --json --now {NOW}"),
        format!("certs --now {NOW}"),
    ] {
        let ran = look(folder.path(), &words)?;
        ensure!(
            (0..=3).contains(&ran.code),
            "{words} ended with {}\n{}",
            ran.status,
            ran.transcript()
        );
        ensure!(
            !ran.stderr.contains("internal error"),
            "{}",
            ran.transcript()
        );
        let all = ran.stdout + &ran.stderr;
        ensure!(
            !all.contains(misleads),
            "{words} shows what misleads: {:?}",
            all.chars()
                .filter(|c| misleads(*c))
                .take(9)
                .collect::<Vec<_>>()
        );
        said.push_str(&all);
    }
    Ok(said)
}

/// The files that are read first, and decide most.
const IMPORTANT: &[&str] = &[
    "etc/kubernetes/manifests/kube-apiserver.yaml",
    "etc/kubernetes/manifests/etcd.yaml",
    "etc/kubernetes/admin.conf",
    "etc/kubernetes/kubelet.conf",
    "etc/kubernetes/pki/ca.crt",
    "etc/kubernetes/pki/ca.key",
    "etc/fstab",
    "etc/hostname",
    "etc/passwd",
    "var/lib/kubelet/config.yaml",
];

fn replace(root: &Path, path: &str, make: impl Fn(&Path) -> Result<()>) -> Result<()> {
    let path = root.join(path);
    let _ = fs::remove_file(&path);
    fs::create_dir_all(path.parent().expect("below the root"))?;
    make(&path)
}

#[test]
fn pipes_devices_and_sockets_where_files_are_expected() -> Result<()> {
    for kind in ["p", "c 1 5", "b 7 0"] {
        survives(|root| {
            for path in IMPORTANT {
                replace(root, path, |path| {
                    Cmd::new("mknod").arg(path).args(kind.split(' ')).ok()?;
                    Ok(())
                })?;
            }
            Ok(())
        })?;
    }
    Ok(())
}

#[test]
fn files_larger_than_memory() -> Result<()> {
    survives(|root| {
        let logs = [
            "var/log/messages",
            "var/log/syslog.1",
            "var/log/x.log.2.gz",
            "root/.kube/config",
        ];
        for path in IMPORTANT.iter().chain(&logs) {
            replace(root, path, |path| {
                Ok(File::create(path)?.set_len(100 << 30)?)
            })?;
        }
        Ok(())
    })?;
    Ok(())
}

/// Ten levels, each of which names the one before ten times.
fn laughs() -> String {
    let mut text = "a0: &a0 [lol]\n".to_owned();
    for level in 1..12 {
        text.push_str(&format!(
            "a{level}: &a{level} [{}]\n",
            vec![format!("*a{}", level - 1); 10].join(",")
        ));
    }
    text
}

#[test]
fn yaml_that_is_deep_or_large_or_unfolds() -> Result<()> {
    let deep = format!("a: {}1{}\n", "[".repeat(200_000), "]".repeat(200_000));
    let deeper = format!("a: {}1{}\n", "{a: ".repeat(100_000), "}".repeat(100_000));
    let list = format!("{}x\n", "- ".repeat(100_000));
    let large = "- {a: [b, c, \"d\"]}\n".repeat(800_000);
    let very_large = format!("a: \"{}\"\n", "x".repeat(100 << 20));
    for text in [deep, deeper, list, laughs(), large, very_large] {
        survives(|root| {
            for path in IMPORTANT
                .iter()
                .filter(|path| path.ends_with(".yaml") || path.ends_with(".conf"))
            {
                replace(root, path, |path| Ok(fs::write(path, &text)?))?;
            }
            Ok(())
        })?;
    }
    Ok(())
}

#[test]
fn links_in_circles_and_into_this_machine() -> Result<()> {
    const FOLDERS: [&str; 6] = [
        "etc/kubernetes/pki",
        "etc/kubernetes/manifests",
        "var/lib/kubelet",
        "var/log",
        "etc/systemd",
        "root/.kube",
    ];
    survives(|root| {
        for folder in FOLDERS {
            let path = root.join(folder);
            let _ = fs::rename(&path, path.with_extension("old"));
            fs::create_dir_all(path.parent().expect("below the root"))?;
            symlink(format!("/{folder}2"), &path)?;
            symlink(
                format!("/{folder}"),
                path.with_file_name(format!("{}2", path.file_name().unwrap().to_string_lossy())),
            )?;
        }
        Ok(())
    })?;
    // What /proc's links lead to on this machine must not be read, whoever runs the program.
    let outside = tempfile::NamedTempFile::new()?;
    fs::write(outside.path(), "name-of-the-helper\n")?;
    let there = outside.path().display().to_string();
    for target in [
        there.clone(),
        format!("/proc/self/root{there}"),
        format!("../../../../../../../..{there}"),
        "/proc/self/fd/0".into(),
    ] {
        let said = survives(|root| {
            for path in IMPORTANT {
                replace(root, path, |path| Ok(symlink(&target, path)?))?;
            }
            Ok(())
        })?;
        ensure!(
            !said.contains("name-of-the-helper"),
            "{target} was followed out of the guest"
        );
    }
    Ok(())
}

#[test]
fn folders_in_folders_in_folders() -> Result<()> {
    survives(|root| {
        for folder in [
            "var/log",
            "etc/systemd/system",
            "etc/kubernetes/pki",
            "home",
        ] {
            let script = format!(
                "mkdir -p {folder} && cd {folder} && python3 -c \"import os\n\
                 for i in range(4096):\n os.mkdir('d'); os.chdir('d')\nopen('f.log.1','w')\""
            );
            Cmd::new("sh").args(["-ec", &script]).dir(root).ok()?;
        }
        Ok(())
    })?;
    Ok(())
}

#[test]
fn names_that_a_terminal_would_obey() -> Result<()> {
    let name =
        b"\x1b[2J\x1b]0;title\x07\n\rrescue: all is well\xc2\x9b31m\xe2\x80\xae\xe2\x80\x8b\xff";
    let said = survives(|root| {
        for folder in [
            "var/log",
            "etc/kubernetes/pki",
            "etc/kubernetes/manifests",
            "etc/systemd/system/kubelet.service.d",
            "root/.kube",
            "home",
        ] {
            fs::create_dir_all(root.join(folder))?;
            for ending in ["", ".log.1", ".gz", ".crt", ".key", ".conf", ".yaml"] {
                let file = root.join(folder).join(OsStr::from_bytes(
                    &[name.as_slice(), ending.as_bytes()].concat(),
                ));
                let certificate = root.join("etc/kubernetes/pki/ca.crt");
                if ending == ".crt" {
                    fs::copy(certificate, file).map(drop)?
                } else {
                    fs::write(file, "x".repeat(3000))?
                }
            }
        }
        let evil = "\x1b[2Jevil\x07\u{202e}";
        fs::write(root.join("etc/hostname"), format!("{evil}\n"))?;
        replace(root, "etc/os-release", |path| {
            Ok(fs::write(
                path,
                format!("PRETTY_NAME=\"{evil}\"\nID=debian\n"),
            )?)
        })?;
        fs::write(
            root.join("etc/fstab"),
            format!("UUID={evil} /mnt/{evil} ext4 defaults 0 0\n"),
        )?;
        let manifest = root.join("etc/kubernetes/manifests/kube-apiserver.yaml");
        let text = fs::read_to_string(&manifest)?;
        let flag = "    - \"--tls-cert-file=/etc/\\e[2J\\u202e.crt\"\n    - --advertise-address";
        fs::write(
            &manifest,
            text.replacen("    - --advertise-address", flag, 1),
        )?;
        Ok(())
    })?;
    ensure!(
        said.contains("\\u{1b}[2J") && said.contains("\\u{202e}"),
        "the names were not shown at all"
    );
    Ok(())
}

#[test]
fn a_long_passwd_units_that_include_each_other_and_an_fstab_over_our_own_paths() -> Result<()> {
    survives(|root| {
        let users: String = (0..400_000)
            .map(|n| format!("u{n}:x:{n}:{n}::/home/u{n}:/bin/sh\n"))
            .collect();
        fs::write(root.join("etc/passwd"), users)?;
        let units = root.join("etc/systemd/system/kubelet.service.d");
        fs::create_dir_all(&units)?;
        for n in 0..500 {
            let next = (n + 1) % 500;
            let text = format!(
                "[Service]\nEnvironmentFile=/etc/systemd/system/kubelet.service.d/{next}.conf\n\
                 EnvironmentFile=/dev/zero\n\
                 EnvironmentFile=/proc/self/environ\nEnvironment=\"A{n}=$A{next}\"\nExecStart=\n\
                 ExecStart=/usr/bin/kubelet $A{n} ${{A{next}}}\n"
            );
            fs::write(units.join(format!("{n}.conf")), text)?;
        }
        let mut fstab = String::new();
        for at in [
            "/proc",
            "/sys",
            "/dev",
            "/",
            "/var/lib/rescue",
            "/var/lib/rescue/runs",
            "/../../..",
            "/tmp/../..",
        ] {
            fstab.push_str(&format!("/dev/sda1 {at} ext4 defaults 0 0\n"));
        }
        fstab.push_str(
            "/etc /var/lib/rescue none bind 0 0\n/ /var none bind 0 0\n\
             /var /var/var none bind 0 0\n",
        );
        fstab.extend((0..1000).map(|n| format!("/a{n} /a{} none bind 0 0\n", (n + 1) % 1000)));
        fs::write(root.join("etc/fstab"), fstab)?;
        Ok(())
    })?;
    // A command line that would unfold to 40 GB.
    survives(|root| {
        let units = root.join("etc/systemd/system/kubelet.service.d");
        fs::create_dir_all(&units)?;
        let text = format!(
            "[Service]\nEnvironment=\"A={}\"\nExecStart=\nExecStart=/usr/bin/kubelet {} {}\n",
            "x ".repeat(200_000),
            "$A ".repeat(100_000),
            "${A}".repeat(100_000)
        );
        fs::write(units.join("99.conf"), text)?;
        Ok(())
    })?;
    Ok(())
}

/// `RESCUE_TINY_FILES=1000000` (or ten times that) is for an afternoon; the results are in
/// docs/measurements.md.
#[test]
fn very_many_tiny_files() -> Result<()> {
    let count: u32 = std::env::var("RESCUE_TINY_FILES")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(20_000);
    survives(|root| {
        let many = root.join("var/log/many");
        fs::create_dir_all(&many)?;
        for n in 0..count {
            File::create(many.join(format!("f{n}.log.1")))?;
        }
        Ok(())
    })?;
    Ok(())
}
