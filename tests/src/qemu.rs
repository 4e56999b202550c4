//! Virtual machines that boot the ISO, driven over their serial console.
//!
//! Emulated unless `RESCUE_ACCEL=kvm` is set, and then with one processor: with several, QEMU's
//! emulation now and then runs an instruction that the guest's kernel is just patching on another
//! processor, and the kernel dies of `int3` where no real machine does. As many machines run at a
//! time as the host has processors, whatever the test runner does in parallel.

use std::fs;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::fs::{FlockOperation, flock};

use crate::command::Cmd;
use crate::programs::{rescue_binary, workspace};

/// How long a machine may take from power on to the menu, on a busy host without hardware
/// virtualisation.
pub const BOOT: Duration = Duration::from_secs(400);

/// Builds the ISO of the release binary with these kernel arguments and gives its path.
pub fn iso(kernel_arguments: &[&str]) -> Result<PathBuf> {
    iso_of(&rescue_binary(), kernel_arguments)
}

/// As [`iso`], of another build of the program.
pub fn iso_of(binary: &Path, kernel_arguments: &[&str]) -> Result<PathBuf> {
    let folder = workspace().join("target/test-iso");
    fs::create_dir_all(&folder)?;
    let _lock = exclusive(&folder.join("lock"))?;
    let name: String = kernel_arguments
        .join("_")
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
        .collect();
    let program = binary
        .file_name()
        .context("a program without a name")?
        .to_string_lossy();
    let iso = folder.join(format!("{program}{name}.iso"));
    let mut words = vec!["run", "--quiet", "--package", "image", "--", "build", "-o"];
    let paths = [
        iso.to_string_lossy().into_owned(),
        binary.to_string_lossy().into_owned(),
    ];
    words.extend([paths[0].as_str(), "--binary", &paths[1]]);
    for argument in kernel_arguments {
        words.extend(["--kernel-arg", argument]);
    }
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    Cmd::new(&cargo)
        .args(words)
        .dir(workspace())
        .timeout(Duration::from_secs(900))
        .ok()
        .context("building the ISO")?;
    Ok(iso)
}

/// An exclusive lock on a file, held until it is dropped.
fn exclusive(path: &Path) -> Result<fs::File> {
    let file = fs::File::create(path).with_context(|| format!("creating {}", path.display()))?;
    flock(&file, FlockOperation::LockExclusive)
        .with_context(|| format!("locking {}", path.display()))?;
    Ok(file)
}

/// A lock on one of as many files as the host has processors, held until it is dropped.
fn a_processor() -> Result<fs::File> {
    let count = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    loop {
        for n in 0..count {
            let path = std::env::temp_dir().join(format!("rescue-tests-qemu-{n}.lock"));
            let file =
                fs::File::create(&path).with_context(|| format!("creating {}", path.display()))?;
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(file),
                Err(rustix::io::Errno::WOULDBLOCK) => {}
                Err(error) => {
                    return Err(error).with_context(|| format!("locking {}", path.display()));
                }
            }
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// What starts the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Firmware {
    /// SeaBIOS.
    Bios,
    /// OVMF with Microsoft's keys and Secure Boot on.
    SecureBoot,
}

/// How the ISO is attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Medium {
    /// In a CD drive.
    Cd,
    /// Written to a USB stick.
    Stick,
}

/// What a disk hangs on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Controller {
    /// KVM's disks.
    VirtioBlk,
    /// KVM's SCSI host.
    VirtioScsi,
    /// SATA.
    Ahci,
    /// NVM Express.
    Nvme,
    /// VMware's paravirtual one.
    Pvscsi,
    /// LSI SAS, as VMware offers it.
    MptSas,
    /// LSI MegaRAID SAS.
    MegaSas,
}

/// A machine to be started.
#[derive(Debug)]
pub struct Vm {
    arguments: Vec<String>,
    firmware: Firmware,
    disks: usize,
}

impl Vm {
    /// A machine with so much memory (in MiB) that boots an ISO.
    pub fn new(firmware: Firmware, medium: Medium, iso: &Path, memory: u32) -> Self {
        let mut vm = Self {
            arguments: Vec::new(),
            firmware,
            disks: 0,
        };
        let accelerator = std::env::var("RESCUE_ACCEL").unwrap_or_else(|_| "tcg".to_owned());
        let processors = if accelerator.starts_with("tcg") {
            "1"
        } else {
            "2"
        };
        vm.add(&[
            "-accel",
            &accelerator,
            "-cpu",
            "max",
            "-smp",
            processors,
            "-m",
            &memory.to_string(),
        ]);
        vm.add(&[
            "-display",
            "none",
            "-monitor",
            "none",
            "-nic",
            "none",
            "-no-reboot",
            "-serial",
            "stdio",
        ]);
        match firmware {
            Firmware::Bios => vm.add(&["-machine", "pc"]),
            Firmware::SecureBoot => vm.add(&[
                "-machine",
                "q35,smm=on",
                "-global",
                "driver=cfi.pflash01,property=secure,value=on",
                "-drive",
                "if=pflash,format=raw,unit=0,readonly=on,file=/usr/share/OVMF/OVMF_CODE_4M.ms.fd",
            ]),
        }
        let iso = iso.display();
        vm.add(&[
            "-drive",
            &format!("if=none,id=medium,format=raw,readonly=on,file={iso}"),
        ]);
        match (medium, firmware) {
            (Medium::Cd, Firmware::Bios) => vm.add(&["-device", "ide-cd,drive=medium,bootindex=0"]),
            (Medium::Cd, Firmware::SecureBoot) => {
                vm.add(&["-device", "ide-cd,bus=ide.0,drive=medium,bootindex=0"])
            }
            (Medium::Stick, _) => {
                vm.add(&[
                    "-device",
                    "qemu-xhci",
                    "-device",
                    "usb-storage,drive=medium,removable=on,bootindex=0",
                ]);
            }
        }
        vm
    }

    /// As [`Vm::attach`], in a row.
    #[must_use]
    pub fn disk(mut self, controller: Controller, image: &Path) -> Self {
        self.attach(controller, image);
        self
    }

    /// Attaches an image.
    pub fn attach(&mut self, controller: Controller, image: &Path) {
        let n = self.disks;
        self.disks += 1;
        self.add(&[
            "-drive",
            &format!("if=none,id=disk{n},format=raw,file={}", image.display()),
        ]);
        let (host, device) = match controller {
            Controller::VirtioBlk => (None, format!("virtio-blk-pci,drive=disk{n}")),
            Controller::Nvme => (None, format!("nvme,drive=disk{n},serial=nvme{n}")),
            Controller::Ahci => (Some("ahci"), format!("ide-hd,bus=host{n}.0,drive=disk{n}")),
            Controller::VirtioScsi => (Some("virtio-scsi-pci"), scsi(n)),
            Controller::Pvscsi => (Some("pvscsi"), scsi(n)),
            Controller::MegaSas => (Some("megasas"), scsi(n)),
            // QEMU shows a SAS disk without a name of its own to nobody.
            Controller::MptSas => (
                Some("mptsas1068"),
                format!("{},wwn=0x5000c50015ea71{n:02x}", scsi(n)),
            ),
        };
        if let Some(host) = host {
            self.add(&["-device", &format!("{host},id=host{n}")]);
        }
        self.add(&["-device", &device]);
    }

    fn add(&mut self, words: &[&str]) {
        self.arguments
            .extend(words.iter().map(|word| (*word).to_owned()));
    }

    /// Powers it on, as soon as a processor is free for it.
    pub fn start(mut self) -> Result<Machine> {
        let lock = a_processor()?;
        let variables = match self.firmware {
            Firmware::Bios => None,
            Firmware::SecureBoot => {
                let copy = tempfile::NamedTempFile::new()?;
                fs::copy("/usr/share/OVMF/OVMF_VARS_4M.ms.fd", copy.path())
                    .context("copying OVMF's variables (apt-get install ovmf)")?;
                self.add(&[
                    "-drive",
                    &format!("if=pflash,format=raw,unit=1,file={}", copy.path().display()),
                ]);
                Some(copy)
            }
        };
        // Dies with the test, however that dies.
        let mut child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "qemu-system-x86_64"])
            .args(&self.arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .context("starting qemu-system-x86_64 (apt-get install qemu-system-x86)")?;
        let input = child.stdin.take().context("no standard input")?;
        let mut output = child.stdout.take().context("no standard output")?;
        let serial = Arc::new(Serial::default());
        let theirs = Arc::clone(&serial);
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(count @ 1..) = output.read(&mut buffer) {
                theirs.append(buffer.get(..count).unwrap_or_default());
            }
            theirs.close();
        });
        Ok(Machine {
            child,
            input,
            serial,
            seen: 0,
            started: Instant::now(),
            _variables: variables,
            _lock: lock,
        })
    }
}

fn scsi(n: usize) -> String {
    format!("scsi-hd,bus=host{n}.0,drive=disk{n}")
}

/// What the serial console said so far.
#[derive(Debug, Default)]
struct Serial {
    said: Mutex<Said>,
    more: Condvar,
}

#[derive(Debug, Default)]
struct Said {
    text: String,
    ended: bool,
}

impl Serial {
    fn lock(&self) -> MutexGuard<'_, Said> {
        self.said
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn append(&self, bytes: &[u8]) {
        // Terminals end lines with both; a test looks for text.
        self.lock()
            .text
            .push_str(&String::from_utf8_lossy(bytes).replace('\r', ""));
        self.more.notify_all();
    }

    fn close(&self) {
        self.lock().ended = true;
        self.more.notify_all();
    }
}

/// A running machine; dropping it pulls the plug.
#[derive(Debug)]
pub struct Machine {
    child: Child,
    input: ChildStdin,
    serial: Arc<Serial>,
    /// How much of what was said has been expected already.
    seen: usize,
    started: Instant,
    _variables: Option<tempfile::NamedTempFile>,
    _lock: fs::File,
}

impl Machine {
    /// Waits until the console says `text` after everything expected before; gives what came up to
    /// and with it.
    pub fn expect(&mut self, text: &str, limit: Duration) -> Result<String> {
        let deadline = Instant::now() + limit;
        let mut said = self.serial.lock();
        loop {
            let fresh = said.text.get(self.seen..).unwrap_or_default();
            if let Some(at) = fresh.find(text) {
                let up_to = fresh.get(..at + text.len()).unwrap_or_default().to_owned();
                self.seen += up_to.len();
                return Ok(up_to);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || said.ended {
                let why = if said.ended {
                    "ended"
                } else {
                    "did not say so in time"
                };
                bail!(
                    "waiting for {text:?}: the machine {why}. It said:\n{}",
                    last_lines(&said.text, 60)
                );
            }
            said = self
                .serial
                .more
                .wait_timeout(said, left)
                .unwrap_or_else(std::sync::PoisonError::into_inner)
                .0;
        }
    }

    /// Types on the serial console.
    pub fn send(&mut self, text: &str) -> Result<()> {
        self.input
            .write_all(text.as_bytes())
            .context("typing on the serial console")?;
        self.input.flush().context("typing on the serial console")
    }

    /// Runs a command in the machine's shell and gives its output, and the echo of the command
    /// before it.
    pub fn shell(&mut self, command: &str, limit: Duration) -> Result<String> {
        // The quotes keep the echo of the command line from being taken for the answer.
        self.send(&format!("{command}; echo DO''NE\r"))?;
        self.expect("DONE\n", limit)
    }

    /// Waits until the machine is off by itself.
    pub fn wait_off(&mut self, limit: Duration) -> Result<ExitStatus> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(status) = self.child.try_wait()? {
                ensure!(status.success(), "QEMU ended with {status}");
                return Ok(status);
            }
            if Instant::now() > deadline {
                bail!(
                    "the machine is still on. It said:\n{}",
                    last_lines(&self.serial.lock().text, 60)
                );
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Everything the console said.
    pub fn transcript(&self) -> String {
        self.serial.lock().text.clone()
    }

    /// Time since power on.
    pub fn up(&self) -> Duration {
        self.started.elapsed()
    }

    /// Pulls the plug.
    pub fn kill(&mut self) -> Result<()> {
        self.child.kill().context("killing QEMU")?;
        self.child.wait().context("waiting for QEMU")?;
        Ok(())
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn last_lines(text: &str, count: usize) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines
        .get(lines.len().saturating_sub(count)..)
        .unwrap_or_default()
        .join("\n")
}
