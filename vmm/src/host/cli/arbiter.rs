//! `tandem arbiter`: the arbiter by hand.

use std::fs::File;
use std::io::Read;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use anyhow::{Context, bail, ensure};
use serde_json::json;
use tandem_arbiter::{Arbiter, Claim, InitOptions, State, Token, Verdict, VmId};

use super::args::{ArbiterAction, ArbiterTarget};
use super::{Outcome, json_line, print};
use crate::host::config::{Config, check_vm_name, vm_id};
use crate::host::shutdown::Shutdown;

/// Between two tries to reach an arbiter.
const RETRY: Duration = Duration::from_secs(1);

pub(super) fn act(action: &ArbiterAction) -> anyhow::Result<Outcome> {
    match action {
        ArbiterAction::Init { target, overwrite, sector_size, generations } => {
            let sector_size = sector_size.as_deref().map(str::parse).transpose()?;
            let options = InitOptions { overwrite: *overwrite, sector_size, slots: *generations };
            init(&resolve(target)?, &options)
        }
        ArbiterAction::Show { target, json } => show(&resolve(target)?, *json),
        ArbiterAction::Claim { target, generation, side, token, wait } => {
            let side = side.parse().map_err(anyhow::Error::msg)?;
            let token = token.as_deref().map_or_else(draw_token, |token| Ok(token.parse()?))?;
            let time_ms = SystemTime::UNIX_EPOCH.elapsed().map_or(0, |time| time.as_millis() as u64);
            // The VM is filled in from the arbiter.
            let claim = Claim { vm: VmId([0; 16]), generation: *generation, side, token, time_ms };
            self::claim(&resolve(target)?, claim, *wait)
        }
    }
}

/// Where an arbiter is, and for which VM where that is known.
struct Place {
    path: PathBuf,
    name: Option<String>,
}

fn resolve(target: &ArbiterTarget) -> anyhow::Result<Place> {
    let ArbiterTarget { arbiter, name } = target;
    if arbiter.extension().is_some_and(|extension| extension == "toml") && arbiter.is_file() {
        ensure!(name.is_none(), "{} names the VM: --name is not needed", arbiter.display());
        let config = Config::read(arbiter)?;
        return Ok(Place { path: config.pair()?.arbiter.clone(), name: Some(config.name) });
    }
    if let Some(name) = name {
        check_vm_name(name).map_err(anyhow::Error::msg)?;
    }
    Ok(Place { path: arbiter.clone(), name: name.clone() })
}

impl Place {
    fn open(&self) -> anyhow::Result<Arbiter> {
        let arbiter = Arbiter::open(&self.path)?;
        if let Some(name) = &self.name
            && arbiter.vm() != vm_id(name)
        {
            bail!("{} is the arbiter of another VM, not of {name:?}", self.path.display());
        }
        tell_notice(&arbiter);
        Ok(arbiter)
    }
}

fn tell_notice(arbiter: &Arbiter) {
    if let Some(notice) = arbiter.notice() {
        tracing::warn!("{notice}");
    }
}

fn init(place: &Place, options: &InitOptions) -> anyhow::Result<Outcome> {
    let name = place.name.as_ref().context("whose arbiter? give --name NAME, or the config file instead")?;
    let mut arbiter = Arbiter::init(&place.path, vm_id(name), options)?;
    tell_notice(&arbiter);
    let state = arbiter.show()?;
    print(|out| Ok(writeln!(out, "{}: arbiter of {name:?}, {}", place.path.display(), state.backend)?))
}

fn show(place: &Place, json: bool) -> anyhow::Result<Outcome> {
    let state = place.open()?.show()?;
    print(|out| if json { json_line(out, &as_json(&state)) } else { Ok(writeln!(out, "{state}")?) })?;
    Ok(if state.damage.is_empty() { Outcome::Done } else { Outcome::Failed })
}

fn as_json(state: &State) -> serde_json::Value {
    let claims: Vec<_> = state
        .claims
        .iter()
        .map(|claim| {
            json!({
                "generation": claim.generation,
                "side": claim.side.to_string(),
                "token": claim.token.to_string(),
                "time_ms": claim.time_ms,
            })
        })
        .collect();
    json!({
        "vm": state.vm.to_string(),
        "backend": state.backend.to_string(),
        "claims": claims,
        "undecided": state.undecided,
        "damage": state.damage,
    })
}

fn claim(place: &Place, mut claim: Claim, wait: bool) -> anyhow::Result<Outcome> {
    let shutdown = Shutdown::on_signals().context("cannot listen for signals")?;
    // A claim whose answer got lost may be repeated with its token: say it before it can.
    tracing::info!(token = %claim.token, generation = claim.generation, side = %claim.side, "claiming");
    let mut told = false;
    loop {
        let pause = match attempt(place, &mut claim) {
            Ok(Verdict::Contended { retry_after }) => retry_after,
            Ok(verdict) => {
                print(|out| Ok(writeln!(out, "{verdict}")?))?;
                return Ok(if verdict == Verdict::Won { Outcome::Done } else { Outcome::Failed });
            }
            Err(error) if wait && is_transient(&error) => {
                if !told {
                    tracing::warn!(%error, "waiting for the arbiter; nobody has won");
                }
                told = true;
                RETRY
            }
            Err(error) => return Err(error),
        };
        if shutdown.wait(pause) {
            bail!("interrupted; whether generation {} is claimed is not known", claim.generation);
        }
    }
}

fn attempt(place: &Place, claim: &mut Claim) -> anyhow::Result<Verdict> {
    let mut arbiter = place.open()?;
    claim.vm = arbiter.vm();
    Ok(arbiter.claim(claim)?)
}

fn is_transient(error: &anyhow::Error) -> bool {
    error.downcast_ref::<tandem_arbiter::Error>().is_some_and(tandem_arbiter::Error::is_transient)
}

fn draw_token() -> anyhow::Result<Token> {
    let mut bytes = [0; 16];
    File::open("/dev/urandom")
        .and_then(|mut random| random.read_exact(&mut bytes))
        .context("cannot draw a token")?;
    Ok(Token(bytes))
}
