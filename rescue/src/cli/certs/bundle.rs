//! `rescue certs bundle --ca CONTROL-PLANE --workers LIST -o bundle.age`: for many workers at once,
//! without their disks. The control plane's disk is only read.

use crate::base::shell;
use anyhow::Result;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use super::sign::lenders;
use super::{output, passphrase};
use crate::base::refusal::Refusal;
use crate::base::ui::Ui as _;
use crate::cli::Outcome;
use crate::cli::args::{self, Stop};
use crate::cli::shared_flags::arguments;
use crate::cli::terminal::Terminal;
use crate::disk::Source;
use crate::pki::ferry::CertificateFile;
use crate::pki::inventory::Signer;
use crate::pki::peer::Peer;
use crate::pki::profile::Authority;
use crate::pki::trust::names::{ControlPlanes, named_only};
use crate::pki::{bundle, cluster_ca, worker_list};
use crate::report::json;
use crate::settings::Settings;
use crate::typed;

arguments! {
    /// make new keys and kubelet client certificates for many workers with the CA key on a
    /// control-plane disk, which is only read. The file holds keys and is encrypted with a
    /// passphrase; `rescue certs install WORKER bundle.age` takes a node's own out of it
    #[argh(subcommand, name = "bundle")]
    pub struct Bundle {
        ca_signers,
        own {
            /// the names of the nodes: a file with one per line (# begins a comment), or name,name
            #[argh(option)]
            pub workers: String,
            /// the file to write, mode 0600
            #[argh(option, short = 'o')]
            pub output: PathBuf,
            /// a file whose first line is the passphrase (default: $RESCUE_PASSPHRASE, else it is
            /// asked for)
            #[argh(option)]
            pub passphrase_file: Option<PathBuf>,
            /// a control plane that is meant to be in the bundle, by name; may be given several
            /// times
            #[argh(option)]
            pub trust: Vec<String>,
        }
        force, days, json, now,
    }
}

/// Reads the CA, makes and encrypts the bundle.
pub fn run(command: &Bundle) -> Result<Result<Outcome>, Stop> {
    if command.ca.is_empty() {
        let usage =
            "rescue certs bundle --ca CONTROL-PLANE --workers list.txt|name,name -o bundle.age";
        return Err(Stop::Usage(usage.to_owned()));
    }
    let settings = Settings {
        ca: command.ca.clone(),
        days: command.days,
        trust: command.trust.clone(),
        ..args::with_now(command.now)
    };
    Ok(make(command, &settings))
}

fn make(command: &Bundle, settings: &Settings) -> Result<Outcome> {
    output::refuse_existing(&command.output, command.force)?;
    let nodes = nodes(&command.workers)?;
    let lenders = lenders(settings)?;
    let signer = only_signer(&lenders, &command.ca)?;
    refuse_control_planes(&nodes, &lenders, &settings.trust)?;
    let passphrase = passphrase::choose(command.passphrase_file.as_deref())?;
    let progress = Terminal.begin("Making keys", u64::try_from(nodes.len()).ok());
    let file = bundle::make(
        &nodes,
        signer,
        settings.now,
        settings.days,
        progress.as_ref(),
    )?;
    drop(progress);
    let sealed = bundle::seal(&file, &passphrase)?;
    output::write(&command.output, &sealed, 0o600, command.force)?;
    say(command, &file, signer);
    Ok(Outcome::Clean)
}

/// A control plane renews its own kubelet's certificate; a key in its name in a file that travels
/// is rarely meant.
fn refuse_control_planes(nodes: &[String], lenders: &[Rc<Peer>], trust: &[String]) -> Result<()> {
    let control_planes = ControlPlanes::of(lenders);
    let unnamed = nodes.iter().filter(|node| !trust.contains(node));
    let why: Vec<String> = unnamed
        .filter_map(|node| Some(named_only(node, &control_planes.why(node)?)))
        .collect();
    match why.is_empty() {
        true => Ok(()),
        false => Err(Refusal::new(
            why.join("; "),
            "nothing was made",
            "leave them out of --workers, or add --trust",
        )
        .into()),
    }
}

/// A list file where there is one of this name, else names.
fn nodes(workers: &str) -> Result<Vec<String>> {
    let path = Path::new(workers);
    let names = match path.is_file() {
        true => worker_list::from_file(&output::read(path)?),
        // "list.txt" could be a node; it is far likelier a list that is not there.
        false if looks_like_a_list(path) => Err(anyhow::anyhow!("there is no such file")),
        false => worker_list::from_words(workers),
    };
    names.map_err(|error| {
        let next = "--workers FILE with one node name per line, or --workers NAME,NAME (as in \
            kubectl get nodes)";
        Refusal::new(
            format!("--workers {}: {error:#}", shell::quoted(path)),
            "nothing was made",
            next,
        )
        .into()
    })
}

fn looks_like_a_list(path: &Path) -> bool {
    let extension = path.extension().and_then(|extension| extension.to_str());
    path.components().count() > 1 || matches!(extension, Some("txt" | "list" | "lst" | "csv"))
}

/// The control planes of one cluster share their CA; of two clusters, which one the names belong to
/// cannot be told.
fn only_signer<'a>(lenders: &'a [Rc<Peer>], sources: &[Source]) -> Result<&'a Signer> {
    let mut signers = cluster_ca::holders(Authority::Cluster, lenders).map(|found| found.signer);
    let first = signers
        .next()
        .ok_or_else(|| cluster_ca::no_key(lenders, &typed::sources(sources)))?;
    match signers.find(|other| !cluster_ca::is_same(&first.certificate, &other.certificate)) {
        None => Ok(first),
        Some(other) => Err(Refusal::new(
            format!(
                "--ca names two clusters, {} and {}",
                cluster_ca::shown(&first.certificate),
                cluster_ca::shown(&other.certificate)
            ),
            "to which of them the workers belong cannot be guessed",
            "make one bundle per cluster",
        )
        .into()),
    }
}

fn say(command: &Bundle, file: &CertificateFile, signer: &Signer) {
    if command.json {
        println!("{}", json::certificates(&command.output, file));
        return;
    }
    for entry in &file.certificates {
        println!(
            "made  key and certificate for {}, valid to {}",
            entry.node, entry.valid_to
        );
    }
    let output = shell::quoted(&command.output);
    println!(
        "For the cluster with the CA {}.",
        cluster_ca::shown(&signer.certificate)
    );
    println!(
        "Written to {output}, encrypted; {} was only read.",
        typed::sources(&command.ca)
    );
    println!(
        "It holds keys: without the passphrase it is of no use, with it it makes a node. Delete \
         it when all are installed."
    );
    println!("Next, for each of them, where its disk is: rescue certs install WORKER {output}");
}
