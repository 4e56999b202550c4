//! The kernel command lines of the boot entries.

use crate::guest::{Guest, GuestPath, Origin};

/// GRUB's configuration where the distributions keep it.
const CONFIGS: [&str; 2] = ["/boot/grub/grub.cfg", "/boot/grub2/grub.cfg"];

/// Entries of the boot loader specification, and where their `$kernelopts` stands.
const ENTRIES: &str = "/boot/loader/entries";
const ENVIRONMENTS: [&str; 2] = ["/boot/grub2/grubenv", "/boot/grub/grubenv"];

/// More entries than this are not read.
const MAX_ENTRIES: usize = 64;

/// The command line of every boot entry that is found, but for those of the recovery mode: where it
/// stands, and its words. Empty where no entry is found: /boot may be on a disk that is not seen.
pub fn boot_lines(guest: &Guest) -> Vec<(Origin, String)> {
    let mut lines = Vec::new();
    for path in CONFIGS.iter().map(GuestPath::new) {
        let commands = ["linux", "linux16", "linuxefi"];
        lines.extend(lines_of(guest, &path, &commands));
    }
    let folder = GuestPath::new(ENTRIES);
    let kernelopts = kernelopts(guest);
    let entries = guest.read_dir(&folder).unwrap_or_default();
    for entry in entries.into_iter().take(MAX_ENTRIES) {
        let path = folder.join(&entry.name);
        if path.as_path().extension().is_some_and(|end| end == "conf") {
            let found = lines_of(guest, &path, &["options"]).into_iter();
            lines.extend(found.map(|(at, line)| (at, line.replace("$kernelopts", &kernelopts))));
        }
    }
    lines.retain(|(_, line)| !is_recovery(line));
    lines
}

/// The lines of a file that begin with one of the commands.
fn lines_of(guest: &Guest, path: &GuestPath, commands: &[&str]) -> Vec<(Origin, String)> {
    let Ok(text) = guest.read_text(path) else {
        return Vec::new();
    };
    let numbered = (1..).zip(text.lines());
    let wanted = numbered.filter(|(_, line)| {
        let first = line.split_ascii_whitespace().next();
        first.is_some_and(|word| commands.contains(&word))
    });
    wanted
        .map(|(number, line)| (Origin::line(path.clone(), number), line.to_owned()))
        .collect()
}

fn kernelopts(guest: &Guest) -> String {
    let texts = ENVIRONMENTS.iter().map(GuestPath::new);
    let mut texts = texts.filter_map(|path| guest.read_text(&path).ok());
    let of = |text: String| {
        let mut lines = text.lines();
        Some(
            lines
                .find_map(|line| line.strip_prefix("kernelopts="))?
                .to_owned(),
        )
    };
    texts.find_map(of).unwrap_or_default()
}

fn is_recovery(line: &str) -> bool {
    const WORDS: [&str; 5] = [
        "single",
        "recovery",
        "1",
        "rescue",
        "systemd.unit=rescue.target",
    ];
    line.split_ascii_whitespace()
        .any(|word| WORDS.contains(&word))
}
