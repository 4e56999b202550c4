//! What may go: one table, least valuable first. A rule names places and names; what a file really
//! is decides ([`Wants`]).

use std::path::Path;

use crate::tree::{Tree, TreeResult};

use super::archive::{self, Archive};
use super::names;
use super::sniff::{JournalState, Kind, sniff};

/// What is done with a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Class {
    /// Deleted.
    Delete,
    /// Cut to its last so many bytes.
    KeepTail(u64),
    /// Only shown: the user knows whether it is needed.
    Show,
}

/// What the content must turn out to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wants {
    /// A package of the package manager.
    Package,
    /// Log text, plain or compressed.
    OldLog,
    /// What a writer that was stopped left of a gzip file.
    HalfGzip,
    /// Lines with times.
    LogLines,
    /// Log text by name, with or without times.
    LogText,
    /// A journal that was rotated away or set aside.
    OldJournal,
    /// A dump of a crashed process or kernel.
    CrashDump,
    /// An archive that holds logs and nothing else.
    LogArchive,
    /// Not looked at (only for [`Class::Show`]).
    Anything,
}

/// What happens to the newest file of a series (`syslog.1` of `syslog.*`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Newest {
    /// As any other.
    Goes,
    /// After everything else; text is cut to its tail instead of deleted.
    GoesLast,
    /// Stays.
    Stays,
}

/// One rule.
#[derive(Debug)]
pub struct Rule {
    /// Stable name, for plans and JSON.
    pub id: &'static str,
    /// What is done.
    pub class: Class,
    /// Folders it reaches into.
    pub places: &'static [&'static str],
    /// How many folders may lie between a place and the file: (least, most).
    pub depth: (usize, usize),
    /// First folders below a place that it leaves to other rules.
    pub except: &'static [&'static str],
    /// Names it is about, for people.
    pub names: &'static str,
    /// Whether a name is meant.
    pub matches: fn(&str) -> bool,
    /// What the content must be.
    pub wants: Wants,
    /// Lower goes first.
    pub rank: u16,
    /// What happens to the newest of a series.
    pub newest: Newest,
    /// Why it may go, one sentence.
    pub why: &'static str,
}

/// Where [`Newest::GoesLast`] begins; above every rank of the table.
pub const LAST: u16 = 900;

/// What stays of a log of a program that writes the same lines again and again.
const SHORT_TAIL: u64 = 1 << 20;

/// What stays of a log that people look into after an outage.
pub const LONG_TAIL: u64 = 8 << 20;

const LOG_SUBFOLDERS: &[&str] = &["journal", "pods", "containers"];

/// All rules; of those that match a file, the first counts.
pub const RULES: &[Rule] = &[
    Rule {
        id: "apt-archives",
        class: Class::Delete,
        places: &["/var/cache/apt/archives"],
        depth: (0, 1),
        except: &[],
        names: "*.deb, partial/*",
        matches: |name| name.ends_with(".deb") || name.ends_with(".deb.FAILED"),
        wants: Wants::Package,
        rank: 10,
        newest: Newest::Goes,
        why: "packages that were installed already; apt fetches them again",
    },
    Rule {
        id: "rpm-cache",
        class: Class::Delete,
        places: &[
            "/var/cache/dnf",
            "/var/cache/yum",
            "/var/cache/zypp/packages",
            "/var/cache/PackageKit",
        ],
        depth: (0, 8),
        except: &[],
        names: "*.rpm, *.drpm, *.solv, *.solvx",
        matches: |name| {
            [".rpm", ".drpm", ".solv", ".solvx"]
                .iter()
                .any(|ending| name.ends_with(ending))
        },
        wants: Wants::Package,
        rank: 12,
        newest: Newest::Goes,
        why: "packages that were installed already; dnf, yum and zypper fetch them again",
    },
    Rule {
        id: "vmware-logs",
        class: Class::Delete,
        places: &["/var/log"],
        depth: (0, 0),
        except: &[],
        names: "vmware-*.N.log, vmware-*.log.N, vmware-*.log.old",
        matches: |name| name.starts_with("vmware-") && names::rotated(name).is_some(),
        wants: Wants::OldLog,
        rank: 20,
        newest: Newest::Goes,
        why: "older logs of open-vm-tools, which repeats the same lines every 30 seconds",
    },
    Rule {
        id: "half-compressed-container-logs",
        class: Class::Delete,
        places: &["/var/log/pods"],
        depth: (2, 2),
        except: &[],
        names: "N.log.YYYYMMDD-HHMMSS.tmp",
        matches: |name| {
            name.strip_suffix(".tmp")
                .is_some_and(|log| log.contains(".log.") && names::rotated(log).is_some())
        },
        wants: Wants::HalfGzip,
        // cleanupUnusedLogs, pkg/kubelet/logs/container_log_manager.go.
        rank: 5,
        newest: Newest::Goes,
        why: "unfinished copies of rotated container logs, which the kubelet itself removes",
    },
    Rule {
        id: "rotated-container-logs",
        class: Class::Delete,
        places: &["/var/log/pods"],
        depth: (2, 2),
        except: &[],
        names: "N.log.YYYYMMDD-HHMMSS[.gz]",
        matches: |name| name.contains(".log.") && names::rotated(name).is_some(),
        wants: Wants::OldLog,
        rank: 30,
        newest: Newest::GoesLast,
        why: "container logs that the kubelet rotated away",
    },
    Rule {
        id: "log-archives",
        class: Class::Delete,
        places: &["/var/log"],
        depth: (0, 3),
        except: LOG_SUBFOLDERS,
        names: "*.tar.gz, *.tgz",
        matches: |name| name.ends_with(".tar.gz") || name.ends_with(".tgz"),
        wants: Wants::LogArchive,
        rank: 600,
        newest: Newest::GoesLast,
        why: "archives that hold logs and nothing else",
    },
    Rule {
        id: "rotated-audit-logs",
        class: Class::Delete,
        places: &["/var/log/audit"],
        depth: (0, 0),
        except: &[],
        names: "audit.log.N",
        matches: |name| name.starts_with("audit.log") && names::rotated(name).is_some(),
        wants: Wants::OldLog,
        rank: 60,
        newest: Newest::GoesLast,
        why: "older generations of the audit log",
    },
    Rule {
        id: "rotated-logs",
        class: Class::Delete,
        places: &["/var/log"],
        depth: (0, 8),
        except: LOG_SUBFOLDERS,
        names: "*.N, *-YYYYMMDD, *-YYYY-MM-DDTHH-MM-SS.mmm.log, *.old, *.gz, *.xz, *.zst, *.bz2",
        matches: |name| names::rotated(name).is_some(),
        wants: Wants::OldLog,
        rank: 40,
        newest: Newest::GoesLast,
        why: "older generations of logs",
    },
    Rule {
        id: "set-aside-journals",
        class: Class::Delete,
        places: &["/var/log/journal"],
        depth: (1, 1),
        except: &[],
        names: "*.journal~",
        matches: |name| name.ends_with(".journal~"),
        wants: Wants::OldJournal,
        rank: 45,
        newest: Newest::GoesLast,
        why: "journals that journald set aside as damaged",
    },
    Rule {
        id: "archived-journals",
        class: Class::Delete,
        places: &["/var/log/journal"],
        depth: (1, 1),
        except: &[],
        names: "*@*.journal",
        matches: |name| name.ends_with(".journal") && name.contains('@'),
        wants: Wants::OldJournal,
        rank: 50,
        newest: Newest::GoesLast,
        why: "journals that journald rotated away; what `journalctl --vacuum-size` removes",
    },
    Rule {
        id: "vmware-active-logs",
        class: Class::KeepTail(SHORT_TAIL),
        places: &["/var/log"],
        depth: (0, 0),
        except: &[],
        names: "vmware-*.log",
        matches: |name| name.starts_with("vmware-") && name.ends_with(".log"),
        wants: Wants::LogText,
        rank: 200,
        newest: Newest::Goes,
        why: "logs of open-vm-tools, which repeats the same lines every 30 seconds; the last lines \
            stay",
    },
    Rule {
        id: "container-logs",
        class: Class::KeepTail(SHORT_TAIL),
        places: &["/var/log/pods"],
        depth: (2, 2),
        except: &[],
        names: "N.log",
        matches: |name| {
            name.strip_suffix(".log")
                .is_some_and(|n| !n.is_empty() && n.bytes().all(|byte| byte.is_ascii_digit()))
        },
        wants: Wants::LogLines,
        rank: 500,
        newest: Newest::Goes,
        why: "container logs; the last lines stay",
    },
    Rule {
        id: "system-logs",
        class: Class::KeepTail(LONG_TAIL),
        places: &["/var/log"],
        depth: (0, 0),
        except: &[],
        names: "syslog, messages, kern.log, daemon.log, auth.log, secure, user.log, debug, \
            maillog, cron",
        matches: |name| SYSTEM_LOGS.contains(&name),
        wants: Wants::LogText,
        rank: 550,
        newest: Newest::Goes,
        why: "logs of the system; the last lines stay",
    },
    Rule {
        id: "audit-log",
        class: Class::KeepTail(LONG_TAIL),
        places: &["/var/log/audit"],
        depth: (0, 0),
        except: &[],
        names: "audit.log",
        matches: |name| name == "audit.log",
        wants: Wants::LogLines,
        rank: 560,
        newest: Newest::Goes,
        why: "the audit log; the last lines stay",
    },
    Rule {
        id: "other-logs",
        class: Class::KeepTail(LONG_TAIL),
        places: &["/var/log"],
        depth: (0, 8),
        except: LOG_SUBFOLDERS,
        names: "*.log",
        matches: |name| name.ends_with(".log"),
        wants: Wants::LogLines,
        rank: 650,
        newest: Newest::Goes,
        why: "logs of programs; the last lines stay",
    },
    Rule {
        id: "crash-dumps",
        class: Class::Delete,
        places: &[
            "/var/lib/systemd/coredump",
            "/var/crash",
            "/var/spool/abrt",
            "/var/lib/apport/coredump",
        ],
        depth: (0, 3),
        except: &[],
        names: "core.*, vmcore*, *.crash, coredump",
        matches: |name| {
            name.starts_with("core")
                || name.starts_with("vmcore")
                || name.ends_with(".crash")
                || name == "dump.incomplete"
        },
        wants: Wants::CrashDump,
        rank: 700,
        newest: Newest::Stays,
        why: "dumps of older crashes; the newest stays as evidence",
    },
    Rule {
        id: "docker-container-logs",
        class: Class::Show,
        places: &["/var/lib/docker/containers"],
        depth: (1, 1),
        except: &[],
        names: "*-json.log*",
        matches: |name| name.contains("-json.log"),
        wants: Wants::Anything,
        rank: 1000,
        newest: Newest::Goes,
        why: "logs of docker's containers: may be emptied with `truncate -s 0`",
    },
    Rule {
        id: "temporary-files",
        class: Class::Show,
        places: &["/tmp", "/var/tmp"],
        depth: (0, 32),
        except: &[],
        names: "*",
        matches: |_| true,
        wants: Wants::Anything,
        rank: 1001,
        newest: Newest::Goes,
        why: "temporary files: may be deleted where no program keeps its work there",
    },
    Rule {
        id: "kubeadm-backups",
        class: Class::Show,
        places: &["/etc/kubernetes/tmp"],
        depth: (0, 8),
        except: &[],
        names: "kubeadm-backup-*, kubeadm-upgraded-*",
        matches: |_| true,
        wants: Wants::Anything,
        rank: 1002,
        newest: Newest::Goes,
        why: "backups that `kubeadm upgrade` made of etcd and the manifests: keep the newest",
    },
];

const SYSTEM_LOGS: &[&str] = &[
    "syslog",
    "messages",
    "kern.log",
    "daemon.log",
    "auth.log",
    "secure",
    "user.log",
    "debug",
    "mail.log",
    "maillog",
    "mail.info",
    "mail.warn",
    "mail.err",
    "cron",
    "cron.log",
    "warn",
    "localmessages",
    "boot.log",
];

impl Rule {
    /// Whether a file `depth` folders below a place may be meant; `first` is the first of these
    /// folders.
    pub fn reaches(&self, depth: usize, first: Option<&str>) -> bool {
        (self.depth.0..=self.depth.1).contains(&depth)
            && !first.is_some_and(|first| self.except.contains(&first))
    }

    /// What a name belongs to: all generations of one log are one series.
    pub fn series(&self, name: &str) -> String {
        match self.wants {
            Wants::OldJournal => name.split('@').next().unwrap_or_default().to_owned(),
            Wants::LogArchive => name
                .chars()
                .filter(|character| !character.is_ascii_digit())
                .collect(),
            Wants::CrashDump => String::new(),
            _ => names::rotated(name).map_or_else(|| name.to_owned(), |rotated| rotated.stem),
        }
    }
}

/// Whether a file may go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It may; says what it is.
    Goes(String),
    /// It stays; says why.
    Stays(String),
}

/// Looks into the file and judges.
pub fn judge(rule: &Rule, tree: &dyn Tree, path: &Path, size: u64) -> TreeResult<Verdict> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let series = rule.series(&name);
    // What is in a package cache or a folder of dumps may be called as it likes.
    let by_name = !matches!(
        rule.wants,
        Wants::Package | Wants::CrashDump | Wants::OldJournal
    );
    // That it is an archive is no news where archives are meant.
    let shown = series
        .strip_suffix(".tar.gz")
        .or(series.strip_suffix(".tgz"))
        .filter(|_| rule.wants == Wants::LogArchive);
    if by_name && let Some(piece) = names::looks_precious(shown.unwrap_or(&series)) {
        return Ok(Verdict::Stays(format!(
            "its name says \"{piece}\", which is no log"
        )));
    }
    let kind = sniff(tree, path, size)?;
    let goes = match rule.wants {
        Wants::Package => matches!(kind, Kind::Deb | Kind::Rpm | Kind::Solv | Kind::Empty),
        Wants::HalfGzip => matches!(kind, Kind::Gzip | Kind::Empty),
        Wants::LogLines => kind == Kind::Log,
        Wants::LogText => is_log_text(kind, &series),
        Wants::OldLog => return old_log(tree, path, &name, &series, kind),
        Wants::OldJournal => is_old_journal(kind, &name),
        Wants::CrashDump => is_crash_dump(kind, &name),
        Wants::LogArchive => return log_archive(tree, path, size, kind),
        Wants::Anything => false,
    };
    Ok(if goes {
        Verdict::Goes(kind.describe())
    } else {
        Verdict::Stays(kind.describe())
    })
}

fn is_log_text(kind: Kind, series: &str) -> bool {
    match kind {
        Kind::Log | Kind::Empty => true,
        Kind::Text | Kind::Nul => names::is_log(series),
        Kind::LoginRecords => ["wtmp", "btmp"].contains(&series),
        _ => false,
    }
}

fn old_log(
    tree: &dyn Tree,
    path: &Path,
    name: &str,
    series: &str,
    kind: Kind,
) -> TreeResult<Verdict> {
    let compressed_name = names::without_compression(name).1;
    let (goes, what) = match kind {
        Kind::Gzip if compressed_name => {
            let inside = archive::peek_gzip(tree, path)?;
            (
                is_log_text(inside, series),
                format!("gzip of {}", inside.describe()),
            )
        }
        // Cannot be unpacked here, so the name must say that it is a log.
        Kind::Compressed(format) if compressed_name => (
            names::is_log(series),
            format!("{format} that cannot be looked into"),
        ),
        kind => (is_log_text(kind, series), kind.describe()),
    };
    Ok(if goes {
        Verdict::Goes(what)
    } else {
        Verdict::Stays(what)
    })
}

fn is_old_journal(kind: Kind, name: &str) -> bool {
    match kind {
        Kind::Journal(JournalState::Archived | JournalState::Offline) => true,
        Kind::Journal(JournalState::Online) | Kind::Empty => name.ends_with('~'),
        _ => false,
    }
}

fn is_crash_dump(kind: Kind, name: &str) -> bool {
    match kind {
        Kind::CoreDump => true,
        Kind::Compressed(_) | Kind::Gzip => {
            name.starts_with("core") && names::without_compression(name).1
        }
        // apport writes the dump as base64 between lines of text.
        Kind::Text | Kind::Log => name.ends_with(".crash"),
        _ => false,
    }
}

fn log_archive(tree: &dyn Tree, path: &Path, size: u64, kind: Kind) -> TreeResult<Verdict> {
    if kind != Kind::Gzip {
        return Ok(Verdict::Stays(kind.describe()));
    }
    Ok(match archive::look_through(tree, path, size)? {
        Archive::Logs(count) => Verdict::Goes(format!("an archive of {count} logs")),
        Archive::Other(what) => Verdict::Stays(what),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn ids_and_ranks_are_in_order() {
        let ids: BTreeSet<_> = RULES.iter().map(|rule| rule.id).collect();
        assert_eq!(ids.len(), RULES.len());
        for rule in RULES {
            assert!(rule.depth.0 <= rule.depth.1, "{}", rule.id);
            assert!(rule.rank < LAST || rule.class == Class::Show, "{}", rule.id);
            assert!(
                !rule.why.ends_with('.') && !rule.places.is_empty(),
                "{}",
                rule.id
            );
        }
    }

    #[test]
    fn the_first_rule_that_matches_is_the_one_meant() {
        let first = |folder: &str, depth, top: Option<&str>, name: &str| {
            RULES
                .iter()
                .find(|rule| {
                    rule.places.contains(&folder)
                        && rule.reaches(depth, top)
                        && (rule.matches)(name)
                })
                .map(|rule| rule.id)
        };
        let cases = [
            (
                ("/var/log", 0, None, "vmware-vmsvc.1.log"),
                Some("vmware-logs"),
            ),
            (
                ("/var/log", 0, None, "vmware-vmsvc.log"),
                Some("vmware-active-logs"),
            ),
            (
                ("/var/log", 0, None, "vmware-network.log.old"),
                Some("vmware-logs"),
            ),
            (("/var/log", 0, None, "syslog.7.gz"), Some("rotated-logs")),
            (("/var/log", 0, None, "syslog"), Some("system-logs")),
            (
                ("/var/log", 0, None, "support.tar.gz"),
                Some("log-archives"),
            ),
            (
                ("/var/log", 1, Some("nginx"), "access.log.2"),
                Some("rotated-logs"),
            ),
            (
                ("/var/log", 1, Some("nginx"), "access.log"),
                Some("other-logs"),
            ),
            (("/var/log", 2, Some("journal"), "x.1"), None),
            (
                ("/var/log/journal", 1, Some("id"), "system@1-2.journal"),
                Some("archived-journals"),
            ),
            (("/var/log/journal", 1, Some("id"), "system.journal"), None),
            (
                ("/var/log/pods", 2, Some("p"), "0.log"),
                Some("container-logs"),
            ),
            (
                ("/var/log/pods", 2, Some("p"), "0.log.20230223-080102.gz"),
                Some("rotated-container-logs"),
            ),
            (
                ("/var/log/pods", 2, Some("p"), "15.log.20261211-202335.tmp"),
                Some("half-compressed-container-logs"),
            ),
            (("/var/log/pods", 2, Some("p"), "upload.tmp"), None),
            (("/var/log/pods", 2, Some("p"), "20261211-202335.tmp"), None),
            (("/var/log", 0, None, "mysql-bin.000123"), None),
            (("/var/log", 0, None, "wtmp"), None),
        ];
        for ((folder, depth, top, name), expected) in cases {
            assert_eq!(first(folder, depth, top, name), expected, "{folder} {name}");
        }
    }

    #[test]
    fn an_unfinished_copy_goes_only_where_it_is_gzip() {
        let name = "15.log.20261211-202335.tmp";
        let rule = RULES
            .iter()
            .find(|rule| rule.id == "half-compressed-container-logs")
            .expect("the rule");
        let verdict = |content: &[u8]| {
            let path = Path::new("/").join(name);
            let tree = crate::tree::MemoryTree::new().file(&path, content);
            judge(rule, &tree, &path, content.len() as u64).expect("judged")
        };
        // The first bytes of what Go's gzip.NewWriter writes.
        let half = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff\xec\xbd";
        assert!(matches!(verdict(half), Verdict::Goes(_)));
        assert!(matches!(verdict(b""), Verdict::Goes(_)));
        assert!(matches!(verdict(b"id;amount\n1;20\n"), Verdict::Stays(_)));
    }
}
