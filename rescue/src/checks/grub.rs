//! grub: the boot loader waits at its menu for a key, because the last boot did not finish.
//!
//! GRUB of Ubuntu sets `recordfail=1` in grubenv before it starts the kernel, and the system takes
//! it back once it is up (grub-common.service). After a power cut it stands there, and grub.cfg
//! takes another timeout: 30 seconds, or none at all where GRUB_RECORDFAIL_TIMEOUT is -1
//! (make_timeout in /etc/grub.d/00_header).

use anyhow::{Context as _, Result};
use serde_json::{Map, Value, json};

use crate::change::{Change, Prepared};
use crate::finding::{Check, Context, Finding, Mode, Remedy};
use crate::guest::{Guest, GuestPath, Origin};
use crate::node::Role;

const WAITS: Mode = Mode::stops_boot(
    "grub.recordfail",
    "GRUB waits at its menu for a key, because the last boot was recorded as failed",
)
.why(
    "grubenv holds recordfail=1 from a boot that did not finish, and grub.cfg then sets the timeout \
    to -1: the menu waits for ever. Nobody sits at the console of a server.",
)
.done("Takes recordfail out of grubenv. Its size and every other variable stay.")
.source("make_timeout in /etc/grub.d/00_header of Ubuntu's GRUB; grub-editenv(1)");

/// See the module.
pub const CHECK: Check = Check {
    id: "grub",
    about: "a boot loader that waits at its menu after a boot that did not finish",
    modes: &[WAITS],
    roles: &[Role::ControlPlane, Role::Worker, Role::Etcd],
    after: &[],
    run,
};

const CONFIG: &str = "/boot/grub/grub.cfg";
const ENVIRONMENT: &str = "/boot/grub/grubenv";

/// GRUB reads and writes the file as one block of this size (GRUB_ENVBLK_SIGNATURE and
/// DEFAULT_ENVBLK_SIZE in util/editenv.c).
const SIZE: usize = 1024;
const SIGNATURE: &[u8] = b"# GRUB Environment Block\n";
const RECORDED: &[u8] = b"recordfail=1\n";

fn run(context: &Context<'_>) -> Result<Vec<Finding>> {
    let guest = context.guest;
    let Some(line) = endless_wait(guest) else {
        return Ok(Vec::new());
    };
    let Some((number, _)) = recorded(guest) else {
        return Ok(Vec::new());
    };
    let environment = Origin::line(GuestPath::new(ENVIRONMENT), number);
    let config = Origin::line(GuestPath::new(CONFIG), line);
    let title = "GRUB waits for a key at the next boot, because the last one did not finish";
    Ok(vec![
        Finding::new(WAITS, title)
            .with_evidence(&environment, "recordfail=1")
            .with_evidence(&config, "set timeout=-1, where recordfail is 1")
            .with_advice(
                "After the next power cut it waits again: set GRUB_RECORDFAIL_TIMEOUT=5 in \
                 /etc/default/grub and run update-grub on the node.",
            )
            .with_remedy(Forget),
    ])
}

/// The line of grub.cfg that lets the menu wait for ever where `recordfail` is set.
fn endless_wait(guest: &Guest) -> Option<usize> {
    let text = guest.read_text(&GuestPath::new(CONFIG)).ok()?;
    let mut is_inside = false;
    for (number, line) in (1..).zip(text.lines().map(str::trim)) {
        match line.split_ascii_whitespace().next() {
            Some("if") => is_inside = line.contains("\"${recordfail}\" = 1"),
            Some("else" | "elif" | "fi") => is_inside = false,
            Some("set") if is_inside && line == "set timeout=-1" => return Some(number),
            _ => {}
        }
    }
    None
}

/// The line of grubenv that records a failed boot, and the block without it. `None` where there is
/// no such line, or the file is no block as GRUB takes it.
fn recorded(guest: &Guest) -> Option<(usize, Vec<u8>)> {
    let bytes = guest.read(&GuestPath::new(ENVIRONMENT)).ok()?;
    if bytes.len() != SIZE || !bytes.starts_with(SIGNATURE) {
        return None;
    }
    let lines: Vec<&[u8]> = bytes.split_inclusive(|byte| *byte == b'\n').collect();
    let index = lines.iter().position(|line| *line == RECORDED)?;
    let kept = lines.iter().filter(|line| **line != RECORDED);
    let mut block: Vec<u8> = kept.flat_map(|line| line.iter().copied()).collect();
    block.resize(SIZE, b'#');
    Some((index + 1, block))
}

/// The failed boot is forgotten.
#[derive(Debug)]
struct Forget;

impl Remedy for Forget {
    fn kind(&self) -> &'static str {
        "forget-failed-boot"
    }

    fn summary(&self) -> String {
        format!("take recordfail out of {ENVIRONMENT}, so that GRUB does not wait for a key")
    }

    fn fields(&self) -> Map<String, Value> {
        Map::from_iter([("path".to_owned(), json!(ENVIRONMENT))])
    }

    fn prepare(&self, context: &Context<'_>) -> Result<Prepared> {
        let (_, block) = recorded(context.guest).context("grubenv records no failed boot")?;
        let path = GuestPath::new(ENVIRONMENT);
        Ok(Prepared {
            changes: vec![Change::write(context.guest, &path, block, 0o644)?],
            ..Prepared::default()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checks::bench::{Bench, control_plane};
    use crate::tree::MemoryTree;

    fn block(variables: &str) -> Vec<u8> {
        let mut block = [SIGNATURE, variables.as_bytes()].concat();
        block.resize(SIZE, b'#');
        block
    }

    fn node(timeout: &str, environment: Vec<u8>) -> MemoryTree {
        let config = format!(
            "if [ \"${{recordfail}}\" = 1 ] ; then\n  set timeout={timeout}\nelse\n  if [ \
             x$feature_timeout_style = xy ] ; then\n    set timeout_style=hidden\n    set \
             timeout=0\n  fi\nfi\n"
        );
        control_plane()
            .file(CONFIG, config)
            .file(ENVIRONMENT, environment)
    }

    #[test]
    fn a_recorded_failure_is_forgotten_and_the_block_keeps_its_size() {
        let variables = "saved_entry=0\nrecordfail=1\nnext_entry=\n";
        let found = Bench::new(CHECK).found(node("-1", block(variables)));
        assert_eq!(found[0].evidence[0].place(), "/boot/grub/grubenv:3");
        assert_eq!(found[0].evidence[1].place(), "/boot/grub/grub.cfg:2");
        let mended = Bench::new(CHECK).mended(node("-1", block(variables)));
        let bytes = mended.read(&GuestPath::new(ENVIRONMENT)).unwrap();
        assert_eq!(bytes, block("saved_entry=0\nnext_entry=\n"));
    }

    #[test]
    fn a_menu_that_goes_on_by_itself_is_no_finding() {
        let bench = Bench::new(CHECK);
        bench.silent(control_plane());
        bench.silent(node("30", block("recordfail=1\n")));
        bench.silent(node("-1", block("")));
        bench.silent(node("-1", block("recordfail=0\n")));
        bench.silent(node("-1", block("recordfail=1\n")[..900].to_vec()));
    }
}
