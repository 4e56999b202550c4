//! `rescue certs sign --ca CONTROL-PLANE req.json… -o signed.json`: the second third of the ferry.
//! The control plane's disk is only read.

use crate::base::shell;
use anyhow::Result;
use std::path::PathBuf;
use std::rc::Rc;

use super::output;
use super::request::pretty;
use crate::base::refusal::Refusal;
use crate::cli::Outcome;
use crate::cli::args::{self, Stop};
use crate::cli::shared_flags::arguments;
use crate::cli::terminal::Terminal;
use crate::pki::cluster_ca;
use crate::pki::ferry::{self, CaName, CertificateFile, Entry, Order, RequestFile};
use crate::pki::peer::Peer;
use crate::pki::profile::Authority;
use crate::pki::trust::names::{ControlPlanes, named_only};
use crate::report::{bounded, json};
use crate::session::Session;
use crate::settings::Settings;
use crate::typed;

arguments! {
    /// sign requests of workers with the CA key on a control-plane disk, which is only read.
    /// Nothing but kubelet client certificates is signed
    #[argh(subcommand, name = "sign")]
    pub struct Sign {
        own {
            /// files that `rescue certs request` wrote
            #[argh(positional)]
            pub requests: Vec<PathBuf>,
        }
        ca_signers, output_file, force, days,
        own {
            /// a node that is signed for although its request does not prove its name, or although
            /// it is a control plane; may be given several times
            #[argh(option)]
            pub trust: Vec<String>,
        }
        json, now,
    }
}

/// Reads the requests and the CA, signs all or none.
pub fn run(command: &Sign) -> Result<Result<Outcome>, Stop> {
    if command.requests.is_empty() || command.ca.is_empty() {
        return Err(Stop::Usage(
            "rescue certs sign --ca CONTROL-PLANE req.json… -o signed.json".to_owned(),
        ));
    }
    let settings = Settings {
        ca: command.ca.clone(),
        days: command.days,
        trust: command.trust.clone(),
        ..args::with_now(command.now)
    };
    Ok(sign(command, &settings))
}

fn sign(command: &Sign, settings: &Settings) -> Result<Outcome> {
    output::refuse_existing(&command.output, command.force)?;
    let requests: Vec<_> = command
        .requests
        .iter()
        .map(|path| (path, read(path)))
        .collect();
    let lenders = lenders(settings)?;
    let control_planes = ControlPlanes::of(&lenders);
    let mut entries: Vec<Entry> = Vec::new();
    let mut wrong = Vec::new();
    for (path, request) in requests {
        let signed = request.and_then(|request| one(&request, &lenders, &control_planes, settings));
        match signed {
            Ok(entry) if entries.iter().any(|other| other.node == entry.node) => {
                wrong.push(format!(
                    "{}: a second request for {}",
                    shell::quoted(path),
                    entry.node
                ));
            }
            Ok(entry) => entries.push(entry),
            Err(error) => wrong.push(format!("{}: {error:#}", shell::quoted(path))),
        }
    }
    if !wrong.is_empty() {
        let next = match entries.is_empty() {
            _ if wrong.iter().any(|wrong| wrong.contains("--trust")) => {
                "leave out what you do not know, or name those that you know with --trust, and \
                 run it again"
            }
            true => {
                "make the requests again with rescue certs request, and give the right control \
                 plane's disk"
            }
            false => "leave these out and run it again for the others",
        };
        return Err(Refusal::new(wrong.join("; "), "nothing was signed", next).into());
    }
    let file = CertificateFile::new(ferry::SIGNED, entries, settings.now);
    output::write(&command.output, &pretty(&file)?, 0o644, command.force)?;
    say(command, &file);
    Ok(Outcome::Clean)
}

/// The nodes on the disks named with `--ca`.
pub(super) fn lenders(settings: &Settings) -> Result<Vec<Rc<Peer>>> {
    Session {
        sources: &[],
        settings,
        ui: &Terminal,
    }
    .signers()
}

type Request = (RequestFile, crate::pki::csr::NodeRequest);

fn read(path: &std::path::Path) -> Result<Request> {
    RequestFile::read(&output::read(path)?)
}

fn one(
    (file, request): &Request,
    lenders: &[Rc<Peer>],
    control_planes: &ControlPlanes,
    settings: &Settings,
) -> Result<Entry> {
    let Some(signer) = ferry::signer(file, lenders) else {
        let wanted: Vec<String> = file.ca.iter().map(CaName::shown).collect();
        let there =
            cluster_ca::holders(Authority::Cluster, lenders).map(|found| &found.signer.certificate);
        anyhow::bail!(
            "{} belongs to the cluster with the CA {}, but the key here is that of {}: another \
             cluster",
            request.node,
            bounded::names(&wanted),
            cluster_ca::all_shown(there)
        );
    };
    let is_trusted = settings.trust.contains(&request.node);
    if let Some(why) = control_planes.why(&request.node).filter(|_| !is_trusted) {
        anyhow::bail!("{}", named_only(&request.node, &why));
    }
    if !is_trusted && !file.proves_its_name(request, &signer.certificate) {
        anyhow::bail!(
            "nothing in the request proves that it is node {0}'s (no certificate of this CA for \
             that name and this key). If you know where it \
             comes from: --trust {0}",
            request.node
        );
    }
    let order = Order {
        node: &request.node,
        public_key_info: &request.public_key_info,
        key_encipherment: file.key_encipherment,
    };
    ferry::sign(order, signer, settings.now, settings.days)
}

fn say(command: &Sign, file: &CertificateFile) {
    if command.json {
        println!("{}", json::certificates(&command.output, file));
        return;
    }
    for entry in &file.certificates {
        println!("signed  {}, valid to {}", entry.node, entry.valid_to);
    }
    let output = shell::quoted(&command.output);
    println!(
        "Written to {output}; it holds no secret, and {} was only read.",
        typed::sources(&command.ca)
    );
    println!("Next, for each of them, where its disk is: rescue certs install WORKER {output}");
}
