//! Arguments, with argh; what argh does not do by itself (`--flag=value`, exit code 2 for usage
//! errors) is wrapped here.

use argh::FromArgs;
use std::path::PathBuf;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::certs::Certs;
use super::etcd::Etcd;
use super::shared_flags::arguments;
use crate::checks::CATALOGUE;
use crate::disk::Source;
use crate::etcd::operations::rebuild::target::Target;
use crate::pki::kubelet::is_node_name;
use crate::settings::{FreeTarget, PatchKubelet, Settings};
use crate::typed;

/// Brings powered-off Kubernetes (kubeadm) nodes back from outside, before they boot.
///
/// SRC is a disk of the powered-off machine: a block device (/dev/sdb) or an image file (raw,
/// qcow2, VMDK). A folder where the guest is already mounted is given with --root DIR. With every
/// command: --image-format raw|qcow2|vmdk says what the image files are, whatever their names say;
/// --image-folder DIR allows images to read from files in DIR (a backing file); --luks-key-file
/// FILE opens encrypted volumes, as $RESCUE_LUKS_PASSPHRASE does (else a terminal is asked);
/// --spill FILE names a new file for journals that are larger than memory, as $RESCUE_SPILL does.
/// Exit codes: 0 nothing left to do, 1 findings left, 2 usage, 3 refused (nothing was changed), 4
/// failed part-way.
#[derive(FromArgs, Debug)]
pub struct Arguments {
    /// what to do
    #[argh(subcommand)]
    pub command: Command,
}

/// The sub-commands.
#[derive(FromArgs, Debug)]
#[argh(subcommand)]
pub enum Command {
    /// Findings.
    Inspect(Inspect),
    /// Plan, ask, apply, verify.
    Repair(Repair),
    /// Take a repair back.
    Undo(Undo),
    /// The file systems' own checkers.
    Fsck(Fsck),
    /// Earlier repairs.
    Runs(Runs),
    /// What the nodes said last.
    Words(Words),
    /// What is where.
    Disks(Disks),
    /// Certificates.
    Certs(Certs),
    /// etcd.
    Etcd(Etcd),
    /// The catalogue.
    Checks(Checks),
    /// The version.
    Version(Version),
}

arguments! {
    /// look at powered-off nodes and say what stops them from coming back; writes nothing
    #[argh(subcommand, name = "inspect")]
    pub struct Inspect {
        machine_disks, root, json,
        own {
            /// show every fact and every piece of evidence
            #[argh(switch)]
            pub details: bool,
        }
        now, only, skip, free_target, ca_lenders, trust_node, node_name, one_node,
    }
}

arguments! {
    /// show the plan, ask, carry it out, and inspect again
    #[argh(subcommand, name = "repair")]
    pub struct Repair {
        machine_disks, root, json_with_answer, yes, dry_run, node, now, only, skip,
        own {
            /// also do what may be wanted as it is: a failure mode (fstab.missing-disk) or a whole
            /// check; else it is asked for by itself, and left out with --yes; may be given several
            /// times
            #[argh(option, from_str_fn(allow_argument))]
            pub allow: Vec<String>,
            /// validity of new certificates in days, at most to the CA's end (default 365)
            #[argh(option, default = "365", from_str_fn(days_argument))]
            pub days: u32,
        }
        free_target,
        own {
            /// keep the keys of renewed certificates
            #[argh(switch)]
            pub reuse_keys: bool,
            /// a DNS name or IP address to be in the API server's certificate; etcd-server=NAME or
            /// etcd-peer=NAME for etcd's; may be given several times
            #[argh(option, from_str_fn(san_argument))]
            pub san: Vec<String>,
            /// extend CAs that are over or end soon: same key, same name, later end, in every copy
            /// on the disk
            #[argh(switch)]
            pub renew_ca: bool,
            /// validity of renewed CAs in days (default 3650)
            #[argh(option, default = "3650", from_str_fn(days_argument))]
            pub ca_days: u32,
            /// take --bootstrap-kubeconfig out of the kubelet's flags: needed, always or never
            /// (default needed)
            #[argh(option, from_str_fn(patch_kubelet_argument), default = "PatchKubelet::Needed")]
            pub patch_kubelet: PatchKubelet,
            /// edit the vendor's line instead of laying a drop-in beside it
            #[argh(switch)]
            pub in_place: bool,
        }
        no_fsck, keep_in,
        own {
            /// with --yes: also carry out what may lose writes that etcd acknowledged (the plan
            /// says which)
            #[argh(switch)]
            pub accept_loss: bool,
            /// an etcd member whose disk is lost for good: the others are repaired without it, and
            /// it must never boot again; may be given several times
            #[argh(option)]
            pub declare_dead: Vec<String>,
            /// repair versions of etcd that no repair has been proved on (3.6 and later)
            #[argh(switch)]
            pub unproven: bool,
        }
        ca_lenders, trust_node, node_name, one_node,
    }
}

arguments! {
    /// take a repair back: every changed file as it was (freed logs stay gone)
    #[argh(subcommand, name = "undo")]
    pub struct Undo {
        machine_disks, root,
        own {
            /// the run to take back (default: the newest)
            #[argh(option)]
            pub run: Option<String>,
        }
        one_of_several_nodes,
        own {
            /// a node of a run of several whose disk is lost for good: the run is taken back
            /// without it; may be given several times
            #[argh(option)]
            pub declare_dead: Vec<String>,
            /// the folder that the repair was given with --keep-in, where it is not at that path
            /// any more
            #[argh(option)]
            pub keep_in: Option<PathBuf>,
        }
        yes,
        own {
            /// print one JSON object instead of text; needs --yes
            #[argh(switch)]
            pub json: bool,
        }
        no_fsck, time_for_now,
    }
}

arguments! {
    /// check the file systems on disks with their own checkers, without writing; then mend, after
    /// asking, what can be mended without loss
    #[argh(subcommand, name = "fsck")]
    pub struct Fsck {
        machine_disks,
        own {
            /// print one JSON object instead of text; mends nothing without --yes
            #[argh(switch)]
            pub json: bool,
            /// mend without asking: e2fsck -p, or xfs_repair (never -L)
            #[argh(switch)]
            pub yes: bool,
            /// ext: let e2fsck answer yes to every question (-y); files that it cannot place are
            /// cut or moved to lost+found
            #[argh(switch)]
            pub answer_yes: bool,
        }
    }
}

arguments! {
    /// show what the nodes themselves logged of failures before the power went
    #[argh(subcommand, name = "words")]
    pub struct Words {
        machine_disks, root, json, now,
    }
}

arguments! {
    /// list earlier repairs of a node, or give up the undo of old ones
    #[argh(subcommand, name = "runs")]
    pub struct Runs {
        machine_disks, root,
        own {
            /// remove what is kept of finished repairs, but for the newest
            #[argh(switch)]
            pub prune: bool,
            /// how many of the newest stay when the others are removed (default 1)
            #[argh(option)]
            pub keep: Option<usize>,
        }
        one_of_several_nodes, yes,
        own {
            /// print one JSON object instead of text; with --prune it needs --yes
            #[argh(switch)]
            pub json: bool,
        }
        time_for_now,
    }
}

arguments! {
    /// draw what is on disks (all of this machine, where none is named) and to which node it
    /// belongs; writes nothing
    #[argh(subcommand, name = "disks")]
    pub struct Disks {
        own {
            /// disks or image files
            #[argh(positional)]
            pub src: Vec<PathBuf>,
        }
        json,
    }
}

arguments! {
    /// list what can be looked for, or explain a check (swap) or a failure mode (swap.fstab)
    #[argh(subcommand, name = "checks")]
    pub struct Checks {
        own {
            /// a check or a failure mode: what is wrong, why it stops the node, what is done
            #[argh(positional)]
            pub id: Vec<String>,
            /// print one JSON object instead of text
            #[argh(switch)]
            pub json: bool,
        }
    }
}

/// print the version
#[derive(FromArgs, Debug)]
#[argh(subcommand, name = "version")]
pub struct Version {}

/// Why the arguments could not be used, or that help was asked for.
#[derive(Debug)]
pub enum Stop {
    /// Print this and exit 0.
    Help(String),
    /// Print this to standard error and exit 2.
    Usage(String),
}

/// Parses the command line without its first word.
pub fn parse(words: &[String]) -> Result<Arguments, Stop> {
    if words.is_empty() {
        return Err(Stop::Usage(format!(
            "{}\n{}",
            "no command given",
            help(&["--help"])
        )));
    }
    if words == ["--version"] {
        return Ok(Arguments {
            command: Command::Version(Version {}),
        });
    }
    let mut words = super::certs::with_list(split_equals(words));
    // argh knows only --help; everybody types -h.
    for word in words
        .iter_mut()
        .take_while(|word| *word != "--")
        .filter(|word| *word == "-h")
    {
        *word = "--help".to_owned();
    }
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    Arguments::from_args(&["rescue"], &words).map_err(|exit| match exit.status {
        Ok(()) => Stop::Help(exit.output),
        Err(()) => Stop::Usage(exit.output.trim_end().to_owned()),
    })
}

/// A usage error with what to type next, where it does not say so by itself: the help of the
/// sub-command that was meant.
pub fn with_next_step(text: &str, words: &[String]) -> String {
    if text.contains("rescue ") {
        return text.to_owned();
    }
    // What follows a sub-command does not show up in its help.
    let knows = |words: &[&str]| {
        let asked: Vec<&str> = words.iter().copied().chain(["--help"]).collect();
        let line = ["rescue"]
            .iter()
            .chain(words)
            .copied()
            .collect::<Vec<_>>()
            .join(" ");
        Arguments::from_args(&["rescue"], &asked)
            .is_err_and(|exit| exit.status.is_ok() && exit.output.contains(&line))
    };
    // `certs list`, `repair`, or nothing of the kind.
    let words: Vec<&str> = words
        .iter()
        .map(String::as_str)
        .filter(|word| !word.starts_with('-'))
        .take(2)
        .collect();
    let command = (0..=words.len())
        .rev()
        .map(|count| &words[..count])
        .find(|words| knows(words))
        .unwrap_or_default();
    let line: Vec<&str> = ["rescue"]
        .into_iter()
        .chain(command.iter().copied())
        .chain(["--help"])
        .collect();
    format!("{text}\nNext: `{}` says what there is", line.join(" "))
}

fn help(words: &[&str]) -> String {
    Arguments::from_args(&["rescue"], words)
        .err()
        .map(|exit| exit.output)
        .unwrap_or_default()
}

/// `--flag=value` becomes two words, as argh wants it; after `--` everything is a source.
fn split_equals(words: &[String]) -> Vec<String> {
    let mut split = Vec::new();
    let mut only_positional = false;
    for word in words {
        only_positional |= word == "--";
        match word.split_once('=') {
            Some((flag, value)) if !only_positional && flag.starts_with("--") => {
                split.extend([flag.to_owned(), value.to_owned()]);
            }
            _ => split.push(word.clone()),
        }
    }
    split
}

/// Disks and folders as sources; at least one is needed.
pub fn sources(disks: &[PathBuf], roots: &[PathBuf]) -> Result<Vec<Source>, Stop> {
    let all: Vec<Source> = disks
        .iter()
        .cloned()
        .map(Source::Disk)
        .chain(roots.iter().cloned().map(Source::Root))
        .collect();
    if all.is_empty() {
        return Err(Stop::Usage(
            "no disk given. Name a disk of the powered-off machine (rescue inspect /dev/sdb, \
             rescue inspect disk.img) or a \
             mounted guest (rescue inspect --root /mnt). `lsblk` lists this machine's disks."
                .to_owned(),
        ));
    }
    Ok(all)
}

/// How the user would type the sources again.
pub fn sources_as_typed(sources: &[Source]) -> String {
    typed::sources(sources)
}

/// The name of a Node object, as the API server takes it.
pub fn node_name_argument(text: &str) -> Result<String, String> {
    match is_node_name(text) {
        true => Ok(text.to_owned()),
        false => Err(format!(
            "{text:?} is no node name: lower-case letters, digits, \"-\" and \".\""
        )),
    }
}

/// What stands where a disk is meant: a folder is a mounted guest.
pub fn source_argument(text: &str) -> Result<Source, String> {
    let path = PathBuf::from(text);
    Ok(if path.is_dir() {
        Source::Root(path)
    } else {
        Source::Disk(path)
    })
}

impl Inspect {
    /// The settings it asks for.
    pub fn settings(&self) -> Settings {
        Settings {
            only: self.only.clone(),
            skip: self.skip.clone(),
            free_target: self.free_target,
            ca: self.ca.clone(),
            trust: self.trust.clone(),
            node_name: self.node_name.clone(),
            ..with_now(self.now)
        }
    }
}

impl Repair {
    /// The settings it asks for.
    pub fn settings(&self) -> Settings {
        Settings {
            only: self.only.clone(),
            skip: self.skip.clone(),
            allow: self.allow.clone(),
            free_target: self.free_target,
            patch_kubelet: self.patch_kubelet,
            in_place: self.in_place,
            days: self.days,
            reuse_keys: self.reuse_keys,
            san: self.san.clone(),
            renew_ca: self.renew_ca,
            ca: self.ca.clone(),
            ca_days: self.ca_days,
            fsck: !self.no_fsck,
            keep_in: self.keep_in.clone(),
            trust: self.trust.clone(),
            node_name: self.node_name.clone(),
            ..with_now(self.now)
        }
    }
}

/// What answers a plan's question beforehand: whether it was given, and how to give it.
pub fn answers(yes: bool, dry_run: bool) -> [(bool, &'static str); 2] {
    [
        (yes, "--yes to carry the plan out"),
        (dry_run, "--dry-run to see it"),
    ]
}

/// JSON is for programs, which cannot be asked.
pub fn refuse_asking(json: bool, answers: &[(bool, &str)]) -> Result<(), Stop> {
    if !json || answers.iter().any(|(is_given, _)| *is_given) {
        return Ok(());
    }
    let (last, others) = answers
        .split_last()
        .map_or(("--yes", &[][..]), |((_, last), others)| (*last, others));
    let others: String = others.iter().map(|(_, way)| format!("{way}, ")).collect();
    let or = if others.is_empty() { "" } else { "or " };
    Err(Stop::Usage(format!(
        "--json cannot ask: add {others}{or}{last}"
    )))
}

/// A run without any check would find nothing, and seem to say that all is well.
pub fn refuse_no_checks(settings: &Settings) -> Result<(), Stop> {
    match crate::plan::selected_checks(settings).is_empty() {
        false => Ok(()),
        true => Err(Stop::Usage(
            "--only and --skip leave no check to run; `rescue checks` lists them".to_owned(),
        )),
    }
}

/// Default settings with the time given, if any.
pub fn with_now(now: Option<OffsetDateTime>) -> Settings {
    let default = Settings::default();
    Settings {
        now: now.unwrap_or(default.now),
        now_given: now.is_some(),
        ..default
    }
}

/// A name for a serving certificate, as it stands.
fn san_argument(text: &str) -> Result<String, String> {
    match crate::pki::x509::names::Name::asked(text) {
        Some(_) => Ok(text.to_owned()),
        None => Err(format!(
            "{text:?} is neither a DNS name nor an IP address, nor etcd-server= or etcd-peer= \
             with one"
        )),
    }
}

/// An RFC 3339 time.
pub fn time_argument(text: &str) -> Result<OffsetDateTime, String> {
    OffsetDateTime::parse(text, &Rfc3339)
        .map_err(|_| format!("'{text}' is not an RFC 3339 time such as 2026-11-23T08:00:00Z"))
}

/// The identifier of a check in the catalogue.
pub(super) fn check_argument(text: &str) -> Result<String, String> {
    let known: Vec<&str> = CATALOGUE.iter().map(|check| check.id).collect();
    match known.contains(&text) {
        true => Ok(text.to_owned()),
        false => Err(format!(
            "no check is called '{text}'; there are: {}",
            known.join(", ")
        )),
    }
}

/// The identifier of a failure mode or a check in the catalogue.
fn allow_argument(text: &str) -> Result<String, String> {
    let check = text.split_once('.').map_or(text, |(check, _)| check);
    let Some(check) = CATALOGUE.iter().find(|known| known.id == check) else {
        let checks: Vec<&str> = CATALOGUE.iter().map(|check| check.id).collect();
        return Err(format!(
            "no check or failure mode is called '{text}'; the checks are: {}; `rescue checks \
             CHECK` lists the failure modes of one",
            checks.join(", ")
        ));
    };
    let modes: Vec<&str> = check.modes.iter().map(|mode| mode.id).collect();
    match text == check.id || modes.contains(&text) {
        true => Ok(text.to_owned()),
        false => Err(format!(
            "no failure mode is called '{text}'; those of {} are: {}",
            check.id,
            modes.join(", ")
        )),
    }
}

/// A number of days.
pub fn days_argument(text: &str) -> Result<u32, String> {
    match text.parse() {
        Ok(days @ 1..=36500) => Ok(days),
        _ => Err(format!("'{text}' is not a number of days from 1 to 36500")),
    }
}

/// One percentage, or two: of bytes, and of inodes.
pub(super) fn free_target_argument(text: &str) -> Result<FreeTarget, String> {
    let percent = |text: &str| {
        let number = text.trim().trim_end_matches('%').parse::<f64>().ok()?;
        (0.0..=95.0).contains(&number).then_some(number)
    };
    let (bytes, inodes) = match text.split_once(',') {
        Some((bytes, inodes)) => (percent(bytes), percent(inodes)),
        None => (percent(text), Some(FreeTarget::default().inodes_percent)),
    };
    match (bytes, inodes) {
        (Some(bytes_percent), Some(inodes_percent)) => Ok(FreeTarget {
            bytes_percent,
            inodes_percent,
        }),
        _ => Err(format!(
            "'{text}' is not a percentage from 0 to 95, or two as in 15,5"
        )),
    }
}

/// `--member NAME=URL`.
pub(super) fn member_argument(text: &str) -> Result<Target, String> {
    Target::parse(text)
}

/// `--bump`, from 0.
pub(super) fn bump_argument(text: &str) -> Result<i64, String> {
    match text.parse() {
        // A revision is a signed number of 64 bits, and the cluster is to go on counting.
        Ok(bump @ 0..=1_000_000_000_000_000) => Ok(bump),
        _ => Err(format!("{text} is no number from 0 to 1000000000000000")),
    }
}

fn patch_kubelet_argument(text: &str) -> Result<PatchKubelet, String> {
    match text {
        "needed" => Ok(PatchKubelet::Needed),
        "always" => Ok(PatchKubelet::Always),
        "never" => Ok(PatchKubelet::Never),
        other => Err(format!("'{other}' is not one of needed, always, never")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<String> {
        line.split(' ').map(str::to_owned).collect()
    }

    #[test]
    fn flags_before_and_after_sources_with_and_without_equals() {
        for line in [
            "repair --yes --days=30 a.img b.img",
            "repair a.img b.img --yes --days 30",
            "repair a.img --yes b.img --days=30",
        ] {
            let Ok(Arguments {
                command: Command::Repair(repair),
            }) = parse(&words(line))
            else {
                panic!("{line} should parse");
            };
            assert!(repair.yes);
            assert_eq!((repair.days, repair.src.len()), (30, 2), "{line}");
        }
    }

    #[test]
    fn wrong_words_are_usage_errors_in_one_line() {
        for line in [
            "inspect --only nonsense a",
            "repair --allow nonsense a",
            "repair --allow swap.nonsense a",
            "repair --days 0 a",
            "repair --free-target 99 a",
            "inspect --now yesterday a",
            "repair --patch-kubelet maybe a",
            "nonsense",
        ] {
            assert!(matches!(parse(&words(line)), Err(Stop::Usage(_))), "{line}");
        }
    }

    #[test]
    fn what_is_allowed_is_a_known_mode_or_check() {
        assert_eq!(allow_argument("swap").as_deref(), Ok("swap"));
        assert_eq!(allow_argument("swap.unit").as_deref(), Ok("swap.unit"));
        let said = allow_argument("swap.fstb").unwrap_err();
        assert!(said.contains("swap.fstab, swap.unit"), "{said}");
        let said = allow_argument("sawp").unwrap_err();
        assert!(
            said.contains("disk-full") && said.contains("swap"),
            "{said}"
        );
    }

    #[test]
    fn every_usage_error_names_what_to_type() {
        for (line, next) in [
            ("repair --bogus a", "`rescue repair --help`"),
            ("--bogus", "`rescue --help`"),
            ("nonsense", "`rescue --help`"),
            ("certs sign --bogus", "`rescue certs sign --help`"),
            ("certs --bogus", "`rescue certs --help`"),
            ("repair --days", "`rescue repair --help`"),
        ] {
            let Err(Stop::Usage(text)) = parse(&words(line)) else {
                panic!("{line}")
            };
            let said = with_next_step(&text, &words(line));
            assert!(said.contains(next), "{line}: {said}");
        }
        assert_eq!(
            with_next_step("type `rescue checks`", &words("inspect a")),
            "type `rescue checks`"
        );
    }

    #[test]
    fn programs_are_told_how_to_answer_beforehand() {
        let says = |answers: &[(bool, &str)]| match refuse_asking(true, answers) {
            Err(Stop::Usage(text)) => text,
            other => format!("{other:?}"),
        };
        assert_eq!(says(&[(false, "--yes")]), "--json cannot ask: add --yes");
        let two = "--json cannot ask: add --yes to carry the plan out, or --dry-run to see it";
        assert_eq!(says(&answers(false, false)), two);
        let three = [&answers(false, false)[..], &[(false, "--output DIR")]].concat();
        assert_eq!(
            says(&three),
            "--json cannot ask: add --yes to carry the plan out, --dry-run to see it, or --output \
             DIR"
        );
        assert!(refuse_asking(true, &answers(false, true)).is_ok());
        assert!(refuse_asking(false, &answers(false, false)).is_ok());
    }

    #[test]
    fn help_is_not_an_error() {
        assert!(matches!(parse(&words("--help")), Err(Stop::Help(_))));
        assert!(matches!(parse(&words("repair --help")), Err(Stop::Help(_))));
    }
}
