//! What a file's name says: rotation, compression, and words that mean "not a log". A name alone
//! never condemns a file.

/// Endings of compressed files, as logrotate, savelog and journald's helpers write them.
const COMPRESSED: [&str; 5] = [".gz", ".xz", ".zst", ".bz2", ".lz4"];

/// A name of an older generation of a log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rotated {
    /// The name of the series: `syslog` for `syslog.2.gz`.
    pub stem: String,
    /// Whether the name ends like a compressed file's.
    pub compressed: bool,
}

/// `name` without the ending of a compressed file.
pub fn without_compression(name: &str) -> (&str, bool) {
    match COMPRESSED
        .iter()
        .find_map(|ending| name.strip_suffix(ending))
    {
        Some(rest) if !rest.is_empty() => (rest, true),
        _ => (name, false),
    }
}

/// Recognises `syslog.1`, `syslog.2.gz`, `messages-20230219`, `vmware-network.3.log`, `x.log.old`,
/// `0.log.20230223-080102.gz`, `audit-2023-02-19T08-01-02.123.log`, `dnf.log.gz`. Numbers with
/// leading zeros are not logrotate's: `mysql-bin.000123` is no rotation.
pub fn rotated(name: &str) -> Option<Rotated> {
    let (plain, compressed) = without_compression(name);
    let stem = [numbered, dated, timed, numbered_before_ending, old]
        .iter()
        .find_map(|rule| rule(plain))
        .or_else(|| compressed.then(|| plain.to_owned()))?;
    // glog: kubelet.host.root.log.INFO.20230223-080102.812.
    let stem = dated(&stem).unwrap_or(stem);
    (!stem.is_empty() && stem != ".").then_some(Rotated { stem, compressed })
}

fn is_generation(text: &str) -> bool {
    let digits = (1..=6).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit());
    digits && (text.len() == 1 || !text.starts_with('0'))
}

/// YYYYMMDD, with HH, HHMM or HHMMSS after a dash, or directly behind.
fn is_date(text: &str) -> bool {
    let digits: String = text.chars().filter(|character| *character != '-').collect();
    let plausible = digits.len() >= 8
        && digits.len() <= 14
        && digits.bytes().all(|byte| byte.is_ascii_digit())
        && (digits.starts_with("19") || digits.starts_with("20"));
    let month = digits.get(4..6).and_then(|month| month.parse::<u8>().ok());
    let day = digits.get(6..8).and_then(|day| day.parse::<u8>().ok());
    plausible
        && !text.starts_with('-')
        && month.is_some_and(|m| (1..=12).contains(&m))
        && day.is_some_and(|d| (1..=31).contains(&d))
}

fn numbered(name: &str) -> Option<String> {
    let (stem, number) = name.rsplit_once('.')?;
    is_generation(number).then(|| stem.to_owned())
}

fn dated(name: &str) -> Option<String> {
    let cut = |separator: char| {
        name.match_indices(separator).find_map(|(at, _)| {
            let (stem, date) = (name.get(..at)?, name.get(at + 1..)?);
            // logrotate's `extension`: messages-20230219.log.
            let date = date.strip_suffix(".log").unwrap_or(date);
            is_date(date).then(|| stem.to_owned())
        })
    };
    cut('.').or_else(|| cut('-'))
}

/// lumberjack, which rotates the API server's audit log and those of many programs in Go:
/// `audit-2023-02-19T08-01-02.123.log`.
fn timed(name: &str) -> Option<String> {
    const SHAPE: &str = "-0000-00-00T00-00-00.000";
    let (rest, ending) = match name.strip_suffix(".log") {
        Some(rest) => (rest, ".log"),
        None => (name, ""),
    };
    let (stem, time) = rest.split_at_checked(rest.len().checked_sub(SHAPE.len())?)?;
    let shape: String = time
        .chars()
        .map(|character| {
            if character.is_ascii_digit() {
                '0'
            } else {
                character
            }
        })
        .collect();
    let date = time.get(1..11)?;
    (shape == SHAPE && is_date(date)).then(|| format!("{stem}{ending}"))
}

/// logrotate's `extension .log`, and open-vm-tools: `vmware-network.1.log`.
fn numbered_before_ending(name: &str) -> Option<String> {
    let (stem, number) = name.strip_suffix(".log")?.rsplit_once('.')?;
    is_generation(number).then(|| format!("{stem}.log"))
}

fn old(name: &str) -> Option<String> {
    name.strip_suffix(".old").map(str::to_owned)
}

/// Logs without `.log` in their name, as Debian, Red Hat and SUSE write them to /var/log.
const LOGS: [&str; 24] = [
    "syslog",
    "messages",
    "kern",
    "daemon",
    "auth",
    "secure",
    "user",
    "debug",
    "mail",
    "maillog",
    "cron",
    "boot",
    "dmesg",
    "spooler",
    "dracut",
    "warn",
    "localmessages",
    "firewall",
    "lpr",
    "news",
    "uucp",
    "alternatives",
    "dpkg",
    "Xorg",
];

/// What rsyslog adds to a name for a level of its own: `mail.err`.
const LEVELS: [&str; 6] = ["err", "info", "warn", "notice", "crit", "debug"];

/// Whether the name (of a series) is a log's: `….log`, `syslog`, `mail.err`, `access_log`.
pub fn is_log(stem: &str) -> bool {
    let lower = stem.to_ascii_lowercase();
    let by_ending = lower == "log"
        || [".log", "_log", "-log"]
            .iter()
            .any(|ending| lower.ends_with(ending));
    let facility = stem
        .rsplit_once('.')
        .filter(|(_, level)| LEVELS.contains(level))
        .map_or(stem, |(name, _)| name);
    by_ending || LOGS.contains(&facility)
}

/// Pieces of names of databases, dumps, keys, images and backups.
const NOT_LOGS: [&str; 52] = [
    ".csv",
    ".tar",
    ".tgz",
    ".zip",
    ".cpio",
    ".mbox",
    ".ldif",
    ".bak",
    ".db",
    ".sqlite",
    ".sql",
    ".mdb",
    ".rdb",
    ".aof",
    ".wal",
    ".ldb",
    ".sst",
    ".ibd",
    ".frm",
    ".myd",
    ".myi",
    ".mai",
    ".mad",
    ".dbf",
    ".dump",
    ".snap",
    ".kdbx",
    ".key",
    ".pem",
    ".crt",
    ".p12",
    ".jks",
    ".gpg",
    ".qcow",
    ".vmdk",
    ".vdi",
    ".img",
    ".iso",
    ".ova",
    ".deb",
    ".rpm",
    "mysql-bin",
    "mysqld-bin",
    "mariadb-bin",
    "binlog",
    "relay-bin",
    "relay-log",
    "ibdata",
    "ib_log",
    "pg_wal",
    "backup",
    "snapshot",
];

/// The piece of `name` that means a database, a dump, a key or a backup. A log about backups
/// (`backup.log`) is a log.
pub fn looks_precious(name: &str) -> Option<&'static str> {
    let lower = name.to_ascii_lowercase();
    let found = NOT_LOGS
        .iter()
        .find(|piece| match piece.strip_prefix('.') {
            // An ending must be whole: `.db` is in `app.db.1`, not in `app.dbus.1`.
            Some(ending) => lower
                .split('.')
                .skip(1)
                .any(|part| part == ending || numbered_part(part, ending)),
            None => lower.contains(**piece),
        })?;
    let about = ["backup", "snapshot"].contains(found) && lower.ends_with(".log");
    (!about).then_some(found)
}

/// `sqlite3`, `qcow2`.
fn numbered_part(part: &str, ending: &str) -> bool {
    part.strip_prefix(ending)
        .is_some_and(|rest| rest.len() == 1 && rest.bytes().all(|byte| byte.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recognises_older_generations() {
        let cases = [
            ("syslog.1", "syslog", false),
            ("syslog.2.gz", "syslog", true),
            ("messages-20230219", "messages", false),
            ("messages-20230219.xz", "messages", true),
            ("messages-2023021903", "messages", false),
            ("app-20230219.log", "app", false),
            ("vmware-network.3.log", "vmware-network.log", false),
            ("vmware-vmsvc.log.old", "vmware-vmsvc.log", false),
            ("0.log.20230223-080102", "0.log", false),
            ("0.log.20230223-080102.gz", "0.log", true),
            ("dnf.log.gz", "dnf.log", true),
            ("history.log.12.gz", "history.log", true),
            ("Xorg.0.log", "Xorg.log", false),
            ("agent.log.12345", "agent.log", false),
            ("audit-2023-02-19T08-01-02.123.log", "audit.log", false),
            ("audit-2023-02-19T08-01-02.123.log.gz", "audit.log", true),
            (
                "kubelet.n1.root.log.INFO.20230223-080102.812",
                "kubelet.n1.root.log.INFO",
                false,
            ),
        ];
        for (name, stem, compressed) in cases {
            assert_eq!(
                rotated(name),
                Some(Rotated {
                    stem: stem.into(),
                    compressed
                }),
                "{name}"
            );
        }
    }

    #[test]
    fn other_numbers_are_no_rotation() {
        for name in [
            "mysql-bin.000123",
            "syslog",
            "app.log",
            "a.1234567",
            ".gz",
            "x-20231399",
            "v1.2.3-beta",
            "sa01",
            "0.log",
            "x-2023-02-19T08-01-02.log",
            "x-2023-02-19T08-01-02.1x3.log",
        ] {
            assert_eq!(rotated(name), None, "{name}");
        }
    }

    #[test]
    fn names_of_data_are_precious() {
        let names = [
            "app.db.1",
            "etcd-snapshot.db.1",
            "mysql-bin.000123",
            "data.sqlite3.1",
            "dump.sql.gz",
            "mail.tar.xz",
        ];
        for name in names {
            assert!(looks_precious(name).is_some(), "{name}");
        }
        for name in [
            "syslog.1",
            "app.dbus.1",
            "backup.log",
            "vmware-vmsvc.1.log",
            "kern.log.2.gz",
        ] {
            assert!(looks_precious(name).is_none(), "{name}");
        }
    }

    #[test]
    fn knows_logs_by_name() {
        for stem in [
            "syslog",
            "mail.err",
            "nginx-access.log",
            "access_log",
            "cron",
            "boot.log",
        ] {
            assert!(is_log(stem), "{stem}");
        }
        for stem in [
            "passwd",
            "config",
            "mysql-bin",
            "sa",
            "mail.tar",
            "secure.conf",
        ] {
            assert!(!is_log(stem), "{stem}");
        }
    }
}
