//! A machine with Debian's systemd as PID 1: it starts the units of all layouts and says what it
//! started.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use tests::Cmd;

use super::layouts::{BASE, Entry, Layout};

/// What systemd did with a layout's unit.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Verdict {
    /// argv of every command it started; none when it refused.
    pub started: Vec<Vec<String>>,
    /// `DropInPaths`.
    pub drop_ins: Vec<String>,
    /// `LoadState`.
    pub load_state: String,
}

/// How long all layouts together may take.
const TIMEOUT: Duration = Duration::from_secs(300);

/// Boots the machine; the verdicts come by the layouts' names.
pub fn run(layouts: &[Layout]) -> Result<BTreeMap<String, Verdict>> {
    let cache = cache()?;
    let kernel = kernel(&cache)?;
    let packages = packages(&cache)?;
    let work = tempfile::tempdir().context("making a folder for the machine")?;
    let root = work.path().join("root");
    build_root(&packages, &root)?;
    lay_out(layouts, &root)?;
    let initrd = work.path().join("initrd");
    Cmd::new("sh")
        .args([
            "-c",
            "cd \"$1\" && find . -print0 | cpio --null --create --quiet --format=newc >\"$2\"",
            "sh",
        ])
        .arg(&root)
        .arg(&initrd)
        .ok()?;
    let (console, result) = (work.path().join("console"), work.path().join("result"));
    let ran = Cmd::new("qemu-system-x86_64")
        .args([
            "-accel",
            "tcg",
            "-cpu",
            "max",
            "-smp",
            "1",
            "-m",
            "768",
            "-nodefaults",
            "-display",
            "none",
            "-no-reboot",
        ])
        .args([
            "-append",
            "console=ttyS0 quiet panic=-1 rdinit=/usr/lib/systemd/systemd \
             systemd.unit=verdict.target",
        ])
        .arg("-kernel")
        .arg(&kernel)
        .arg("-initrd")
        .arg(&initrd)
        .arg("-serial")
        .arg(format!("file:{}", console.display()))
        .arg("-serial")
        .arg(format!("file:{}", result.display()))
        .timeout(TIMEOUT)
        .run();
    let ran = ran.with_context(|| {
        let end = |path: &Path| {
            let text = fs::read_to_string(path).unwrap_or_default();
            text.get(text.len().saturating_sub(3000)..)
                .unwrap_or_default()
                .to_owned()
        };
        format!("console:\n{}\nresult:\n{}", end(&console), end(&result))
    })?;
    let text = fs::read_to_string(&result)
        .unwrap_or_default()
        .replace('\r', "");
    if !text.lines().any(|line| line == "DONE") {
        let console = fs::read_to_string(&console).unwrap_or_default();
        let tail: Vec<&str> = console.lines().rev().take(40).collect();
        let tail: Vec<&str> = tail.into_iter().rev().collect();
        bail!(
            "the machine did not finish ({}, {:?}); console:\n{}\nresult:\n{text}",
            ran.status,
            ran.took,
            tail.join("\n")
        );
    }
    if std::env::var_os("VERDICT_CONSOLE").is_some() {
        eprintln!("{}", fs::read_to_string(&console).unwrap_or_default());
    }
    eprintln!(
        "note: systemd answered for {} layouts in {:.1} s",
        layouts.len(),
        ran.took.as_secs_f64()
    );
    parse(&text, layouts)
}

/// Blocks of properties, one per unit in the order of the batches, then
/// `ARGV unit invocation :hex:hex…` per start.
fn parse(text: &str, layouts: &[Layout]) -> Result<BTreeMap<String, Verdict>> {
    let (wide, own): (Vec<&Layout>, Vec<&Layout>) =
        layouts.iter().partition(|layout| layout.is_wide());
    let blocks: Vec<&str> = text
        .split("\n\n")
        .filter(|block| block.contains("LoadState="))
        .collect();
    ensure!(
        blocks.len() == layouts.len(),
        "{} blocks for {} units:\n{text}",
        blocks.len(),
        layouts.len()
    );
    let mut verdicts = BTreeMap::new();
    for (layout, block) in own.into_iter().chain(wide).zip(blocks) {
        let property = |name: &str| {
            block
                .lines()
                .find_map(|line| line.strip_prefix(name))
                .unwrap_or_default()
        };
        let verdict = Verdict {
            started: starts(text, layout)?,
            drop_ins: property("DropInPaths=")
                .split_whitespace()
                .map(str::to_owned)
                .collect(),
            load_state: property("LoadState=").to_owned(),
        };
        verdicts.insert(layout.name.clone(), verdict);
    }
    Ok(verdicts)
}

/// Commands of the first start; Restart= may have brought more.
fn starts(text: &str, layout: &Layout) -> Result<Vec<Vec<String>>> {
    let mut first: Option<&str> = None;
    let mut started = Vec::new();
    for line in text.lines().filter_map(|line| line.strip_prefix("ARGV ")) {
        let mut fields = line.splitn(3, ' ');
        let (unit, invocation, argv) = (
            fields.next(),
            fields.next(),
            fields.next().unwrap_or_default(),
        );
        // An alias is started under its real name, which begins in the same way.
        if unit.is_some_and(|unit| unit.starts_with(&layout.short))
            && *first.get_or_insert(invocation.unwrap_or_default())
                == invocation.unwrap_or_default()
        {
            started.push(argv.split(':').skip(1).map(unhex).collect::<Result<_>>()?);
        }
    }
    Ok(started)
}

fn unhex(digits: &str) -> Result<String> {
    let bytes: Result<Vec<u8>, _> = (0..digits.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&digits[at..at + 2], 16))
        .collect();
    Ok(
        String::from_utf8_lossy(&bytes.with_context(|| format!("{digits} is not hexadecimal"))?)
            .into_owned(),
    )
}

/// Downloads are kept between runs, beside cargo's own files.
fn cache() -> Result<PathBuf> {
    let target = Path::new(env!("CARGO_BIN_EXE_print-argv"))
        .ancestors()
        .nth(3)
        .context("finding the target folder")?;
    let cache = target.join("verdict-cache");
    fs::create_dir_all(&cache)?;
    Ok(cache)
}

/// Debian's kernel: the ISO builder's package if it is there, else downloaded.
fn kernel(cache: &Path) -> Result<PathBuf> {
    let kernel = cache.join("vmlinuz");
    if kernel.exists() {
        return Ok(kernel);
    }
    let beside = cache
        .parent()
        .context("finding the target folder")?
        .join("image-cache");
    let deb = match find_deb(&beside, "linux-image-").or_else(|| find_deb(cache, "linux-image-")) {
        Some(deb) => deb,
        None => {
            let meta = Cmd::new("apt-cache")
                .args(["depends", "linux-image-amd64"])
                .ok()?
                .stdout;
            let package = meta
                .lines()
                .find_map(|line| line.trim().strip_prefix("Depends: linux-image-"));
            download(
                cache,
                &[format!(
                    "linux-image-{}",
                    package.context("apt knows no kernel; next: apt-get update")?
                )],
            )?;
            find_deb(cache, "linux-image-").context("apt-get left no kernel package")?
        }
    };
    let temporary = cache.join("vmlinuz.new");
    let script = "dpkg-deb --fsys-tarfile \"$1\" | tar --extract --to-stdout --wildcards \
        './boot/vmlinuz-*' >\"$2\"";
    Cmd::new("sh")
        .args(["-c", script, "sh"])
        .arg(&deb)
        .arg(&temporary)
        .ok()?;
    ensure!(
        fs::metadata(&temporary)?.len() > 1 << 20,
        "{} holds no kernel",
        deb.display()
    );
    fs::rename(&temporary, &kernel)?;
    Ok(kernel)
}

fn find_deb(folder: &Path, prefix: &str) -> Option<PathBuf> {
    let files = fs::read_dir(folder)
        .ok()?
        .flatten()
        .map(|entry| entry.path());
    let mut debs: Vec<PathBuf> = files
        .filter(|path| path.extension().is_some_and(|extension| extension == "deb"))
        .filter(|path| {
            path.file_name()
                .is_some_and(|name| name.to_string_lossy().starts_with(prefix))
        })
        .collect();
    debs.sort();
    debs.pop()
}

fn download(folder: &Path, packages: &[String]) -> Result<()> {
    Cmd::new("apt-get")
        .args(["-q", "-o", "APT::Sandbox::User=root", "download"])
        .args(packages)
        .dir(folder)
        .timeout(Duration::from_secs(300))
        .ok()
        .context("downloading packages (next: apt-get update)")?;
    Ok(())
}

/// systemd and the libraries it depends on, unpacked.
fn packages(cache: &Path) -> Result<PathBuf> {
    let unpacked = cache.join("systemd");
    if unpacked.exists() {
        return Ok(unpacked);
    }
    let list = Cmd::new("apt-cache")
        .args([
            "depends",
            "--recurse",
            "--no-recommends",
            "--no-suggests",
            "--no-conflicts",
            "--no-breaks",
        ])
        .args(["--no-replaces", "--no-enhances", "systemd"])
        .ok()?
        .stdout;
    let mut names: Vec<String> = list
        .lines()
        .filter(|line| *line == "systemd" || line.starts_with("lib"))
        .map(str::to_owned)
        .collect();
    names.sort();
    names.dedup();
    // Names that only other packages provide have no record and cannot be downloaded.
    let records = Cmd::new("apt-cache")
        .args(["show", "--no-all-versions"])
        .args(&names)
        .run()?
        .stdout;
    names.retain(|name| {
        records
            .lines()
            .any(|line| line.strip_prefix("Package: ") == Some(name))
    });
    let work = tempfile::Builder::new().prefix("new-").tempdir_in(cache)?;
    let (debs, root) = (work.path().join("debs"), work.path().join("root"));
    fs::create_dir(&debs)?;
    download(&debs, &names)?;
    make_base(&root)?;
    for deb in fs::read_dir(&debs)? {
        let script = "dpkg-deb --fsys-tarfile \"$1\" | tar --extract --keep-directory-symlink \
            --directory \"$2\"";
        Cmd::new("sh")
            .args(["-c", script, "sh"])
            .arg(deb?.path())
            .arg(&root)
            .ok()?;
    }
    fs::rename(&root, &unpacked)?;
    Ok(unpacked)
}

/// A merged-/usr skeleton.
fn make_base(root: &Path) -> Result<()> {
    for folder in [
        "usr/bin",
        "usr/sbin",
        "usr/lib",
        "usr/lib64",
        "usr/local/bin",
        "etc/systemd/system",
        "dev",
        "proc",
        "sys",
        "run",
        "tmp",
        "var/lib",
        "var/log",
        "var/tmp",
        "root",
    ] {
        fs::create_dir_all(root.join(folder))?;
    }
    for name in ["bin", "sbin", "lib", "lib64"] {
        symlink(format!("usr/{name}"), root.join(name))?;
    }
    Ok(())
}

/// systemd, systemctl and their libraries, busybox, the program that prints its argv, and the
/// driver.
fn build_root(packages: &Path, root: &Path) -> Result<()> {
    make_base(root)?;
    let mut wanted: Vec<PathBuf> = ["usr/lib/systemd/systemd", "usr/bin/systemctl"]
        .map(PathBuf::from)
        .to_vec();
    // A program of its own since systemd 254.
    wanted.extend(
        Some(PathBuf::from("usr/lib/systemd/systemd-executor"))
            .filter(|path| packages.join(path).exists()),
    );
    let libraries = libraries(packages)?;
    let mut done: Vec<PathBuf> = Vec::new();
    while let Some(path) = wanted.pop() {
        if done.contains(&path) {
            continue;
        }
        let to = root.join(&path);
        fs::create_dir_all(to.parent().context("a file has a folder")?)?;
        fs::copy(packages.join(&path), &to)
            .with_context(|| format!("copying {}", path.display()))?;
        for needed in needed(&packages.join(&path))? {
            let library = libraries
                .get(&needed)
                .with_context(|| format!("no package brings {needed}"))?;
            wanted.push(library.clone());
        }
        done.push(path);
    }
    let loader = Path::new("usr/lib64/ld-linux-x86-64.so.2");
    fs::copy(packages.join(loader), root.join(loader)).context("copying the dynamic loader")?;
    fs::copy("/bin/busybox", root.join("usr/bin/busybox"))
        .context("copying busybox (package busybox-static)")?;
    for name in ["sh", "cat", "cp", "mkdir", "rm", "sleep", "reboot"] {
        symlink("busybox", root.join("usr/bin").join(name))?;
    }
    fs::copy(
        env!("CARGO_BIN_EXE_print-argv"),
        root.join("usr/bin/print-argv"),
    )?;
    for (path, text) in BASE.iter().chain(&SYSTEM) {
        write(&root.join(path), text.as_bytes())?;
    }
    fs::set_permissions(
        root.join("usr/bin/driver"),
        fs::Permissions::from_mode(0o755),
    )?;
    Ok(())
}

/// Where each library of the packages is, by its name.
fn libraries(packages: &Path) -> Result<BTreeMap<String, PathBuf>> {
    let list = Cmd::new("find")
        .arg(packages)
        .args(["-name", "*.so*", "-printf", "%P\\n"])
        .ok()?
        .stdout;
    Ok(list
        .lines()
        .filter_map(|line| {
            Some((
                Path::new(line).file_name()?.to_str()?.to_owned(),
                PathBuf::from(line),
            ))
        })
        .collect())
}

/// Names of the libraries that a program or library is linked with.
fn needed(file: &Path) -> Result<Vec<String>> {
    let text = Cmd::new("readelf")
        .arg("--dynamic")
        .arg(file)
        .ok()
        .context("readelf is in the package binutils")?
        .stdout;
    let names = text.lines().filter(|line| line.contains("(NEEDED)"));
    Ok(names
        .filter_map(|line| Some(line.split_once('[')?.1.split_once(']')?.0.to_owned()))
        .filter(|name| !name.starts_with("ld-linux"))
        .collect())
}

/// One batch of files for all layouts that keep to their own names, then one for each that reaches
/// into other units.
fn lay_out(layouts: &[Layout], root: &Path) -> Result<()> {
    let (wide, own): (Vec<&Layout>, Vec<&Layout>) =
        layouts.iter().partition(|layout| layout.is_wide());
    let batches = std::iter::once(own).chain(wide.into_iter().map(|layout| vec![layout]));
    for (number, batch) in batches.enumerate() {
        let folder = root.join(format!("layouts/{number}"));
        let units: String = batch
            .iter()
            .map(|layout| format!("{}\n", layout.unit))
            .collect();
        write(&folder.join("units"), units.as_bytes())?;
        for layout in batch {
            for (path, entry) in &layout.files {
                let path = folder.join("files").join(path);
                match entry {
                    Entry::Bytes(bytes) => write(&path, bytes)?,
                    Entry::Link(target) => {
                        fs::create_dir_all(path.parent().context("a link has a folder")?)?;
                        symlink(target, &path)?;
                    }
                }
            }
            for program in ["usr/bin", "usr/local/bin"] {
                let program = root.join(program).join(&layout.short);
                if !program.exists() {
                    symlink("/usr/bin/print-argv", program)?;
                }
            }
        }
    }
    Ok(())
}

fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    fs::create_dir_all(path.parent().context("a file has a folder")?)?;
    fs::write(path, bytes).with_context(|| format!("writing {}", path.display()))
}

/// The rest of the machine: no more units than a service's default dependencies ask for.
const SYSTEM: [(&str, &str); 9] = [
    ("etc/passwd", "root:x:0:0:root:/root:/bin/sh\n"),
    ("etc/group", "root:x:0:\n"),
    (
        "etc/systemd/system.conf",
        "[Manager]\nLogTarget=console\nLogLevel=info\nShowStatus=no\nDefaultStandardOutput=null\n\
         DefaultTimeoutStartSec=30\nDefaultStartLimitIntervalSec=0\n",
    ),
    (
        "usr/lib/systemd/system/sysinit.target",
        "[Unit]\nDescription=System Initialization\n",
    ),
    (
        "usr/lib/systemd/system/basic.target",
        "[Unit]\nDescription=Basic System\n",
    ),
    (
        "usr/lib/systemd/system/shutdown.target",
        "[Unit]\nDescription=Shutdown\nDefaultDependencies=no\n",
    ),
    (
        "usr/lib/systemd/system/verdict.target",
        "[Unit]\nDefaultDependencies=no\nWants=verdict.service\n",
    ),
    (
        "usr/lib/systemd/system/verdict.service",
        "[Unit]\nDefaultDependencies=no\n[Service]\nType=exec\nStandardOutput=tty\n\
         StandardError=null\nTTYPath=/dev/ttyS1\nExecStart=/usr/bin/driver\n",
    ),
    ("usr/bin/driver", DRIVER),
];

const DRIVER: &str = r#"#!/bin/sh
export PATH=/usr/bin
for batch in /layouts/*; do
  cp -a "$batch/files/." /
  set --
  while read -r unit; do set -- "$@" "$unit"; done <"$batch/units"
  systemctl daemon-reload
  systemctl start -- "$@"
  # A simple service counts as started before its program has run.
  tries=0
  while [ $tries -lt 100 ]; do
    running=$(cat /sys/fs/cgroup/system.slice/k[0-9]*/cgroup.procs /sys/fs/cgroup/system.slice/*/k[0-9]*/cgroup.procs)
    [ -n "$running" ] || break
    sleep 0.2
    tries=$((tries + 1))
  done
  # One block per unit, in their order, with an empty line between them.
  systemctl show --property=LoadState --property=DropInPaths -- "$@"
  echo
done
cat /run/verdict/argv
echo DONE
reboot -f
"#;
