//! rsyslog's files, for nodes whose journal is in memory only: Debian and Ubuntu's syslog, the
//! messages of the Red Hat and SUSE families.

use time::OffsetDateTime;

use super::gather::{Gatherer, Line};
use super::syslog::{self, SyslogLine};
use super::{Boot, LastWords, message, tail};
use crate::guest::{Guest, GuestPath};

const FILES: [&str; 2] = ["/var/log/syslog", "/var/log/messages"];

/// Bytes that are read of each, from its end.
const TAIL: u64 = 4 << 20;

/// Boots that are looked at.
const MOST_BOOTS: usize = 3;

const PROGRAMS: [&str; 7] = [
    "kubelet",
    "containerd",
    "dockerd",
    "cri-dockerd",
    "crio",
    "etcd",
    "kubeadm",
];

/// Reads their words.
pub(super) fn read(guest: &Guest, found: &mut LastWords) {
    for path in FILES {
        let path = GuestPath::new(path);
        let Some(tail) = tail::read(guest, &path, TAIL) else {
            continue;
        };
        found.files.push(path.clone());
        found.is_cut |= tail.is_cut;
        let mut gatherer = Gatherer::default();
        let mut boots = Boots::default();
        for line in tail.lines().rev() {
            let Some(line) = syslog::parse(line, tail.modified) else {
                continue;
            };
            if !boots.take(&line) {
                found.is_cut = true;
                break;
            }
            add(&mut gatherer, &path, &line, boots.current);
        }
        if found.boots.is_empty() {
            found.boots = boots.seen;
        }
        gatherer.finish(found);
    }
}

fn add(gatherer: &mut Gatherer, file: &GuestPath, line: &SyslogLine<'_>, boot: usize) {
    let is_error = match line.program {
        "systemd" => {
            let is_ours = ["kubelet", "containerd", "docker", "crio", "etcd"];
            is_ours.iter().any(|name| line.text.contains(name))
                && message::is_failed_unit(line.text)
        }
        program if PROGRAMS.contains(&program) => message::is_error(line.text, None),
        _ => return,
    };
    if line.program == "systemd" && !is_error {
        return;
    }
    gatherer.add(&Line {
        at: line.at,
        boot: Some(boot),
        source: line.program,
        text: line.text,
        is_error,
        file,
    });
}

/// The boots of a file that is read backwards: the kernel's first line ends one.
#[derive(Default)]
struct Boots {
    seen: Vec<Boot>,
    current: usize,
    is_between: bool,
}

impl Boots {
    /// Takes a line; false where it belongs to a boot too far back.
    fn take(&mut self, line: &SyslogLine<'_>) -> bool {
        if self.is_between {
            self.current += 1;
            self.is_between = false;
        }
        if self.current >= MOST_BOOTS {
            return false;
        }
        let at: Option<OffsetDateTime> = line.at;
        match self.seen.get_mut(self.current) {
            Some(boot) => boot.first = at.or(boot.first),
            None => self.seen.push(Boot {
                first: at,
                last: at,
            }),
        }
        self.is_between = line.is_boot();
        true
    }
}
