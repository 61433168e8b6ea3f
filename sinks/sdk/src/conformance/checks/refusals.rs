//! What must be refused, and how it is told.

use serde_json::json;

use super::{
    super::{
        harness::{Refused, UnknownTarget},
        kit::{Kit, is_acknowledged, text},
        verdict::Fault,
    },
    faults::check_fails,
};
use crate::{FailureKind, Outcome, PathSegment, SinkErrorKind};

pub(super) fn unknown_target(kit: &mut Kit<'_>) -> Result<(), Fault> {
    let UnknownTarget { config, target, named } = kit.harness.unknown_target()?;
    let sink = kit.open_with(config)?;
    let mut delivery = kit.next("nowhere");
    kit.redirect(&mut delivery, &target)?;
    let outcome = &kit.decide(&sink, &delivery)?;
    let refused = matches!(outcome, Outcome::Rejected(_))
        || matches!(outcome, Outcome::Failed(why) if why.kind == FailureKind::Fatal);
    if !refused {
        return Err(format!("it must be rejected or fatal, and is {outcome:?}").into());
    }
    must_name(text(outcome).unwrap_or_default(), &named)?;
    kit.close(&sink)
}

fn must_name(text: &str, named: &str) -> Result<(), Fault> {
    if text.contains(named) { Ok(()) } else { Err(format!("the text does not name `{named}`: {text}").into()) }
}

pub(super) fn bad_credentials(kit: &mut Kit<'_>) -> Result<(), Fault> {
    let Refused { config, named } = kit.harness.refused()?;
    let sink = kit.open_with(config)?;
    let delivery = kit.next("refused");
    let outcome = &kit.decide(&sink, &delivery)?;
    if !matches!(outcome, Outcome::Failed(why) if why.kind == FailureKind::Fatal) {
        return Err(format!("a delivery must fail as fatal, and its outcome is {outcome:?}").into());
    }
    must_name(text(outcome).unwrap_or_default(), &named)?;
    if kit.harness.check_sees_credentials() {
        let text = check_fails(kit, &sink, SinkErrorKind::Fatal, "with credentials that are refused")?;
        must_name(&text, &named)?;
    }
    kit.close(&sink)
}

pub(super) fn close_twice(kit: &mut Kit<'_>) -> Result<(), Fault> {
    let sink = kit.open()?;
    kit.close(&sink)?;
    kit.close(&sink)?;
    let sink = kit.open()?;
    let deliveries = kit.each("closing", 20);
    let outcomes = kit.attempt(&sink, &deliveries)?;
    kit.close(&sink)?;
    kit.close(&sink)?;
    kit.arrived(&Kit::acknowledged(&deliveries, &outcomes))?;
    let late = kit.each("late", 1);
    match &kit.attempt(&sink, &late)?[..] {
        [outcome] if is_acknowledged(outcome) => Err("a delivery after `close` was acknowledged".to_owned().into()),
        [Outcome::Rejected(why)] => Err(format!("a delivery after `close` was reported as rejected: {why}").into()),
        _ => Ok(()),
    }
}

pub(super) fn unknown_keys(kit: &mut Kit<'_>) -> Result<(), Fault> {
    const KEY: &str = "no_such_key";
    let mut config = kit.harness.config();
    let secret = kit.harness.secrets().into_iter().next().unwrap_or_else(|| "a value".to_owned());
    let Some(keys) = config.as_object_mut() else {
        return Err("the harness's configuration is not a mapping".to_owned().into());
    };
    keys.insert(KEY.to_owned(), json!({ "value": secret }));
    match kit.factory.parse(config) {
        Ok(_) => Err(format!("a key `{KEY}` is accepted: `#[serde(deny_unknown_fields)]` is missing").into()),
        Err(issue) => {
            kit.texts.push(issue.message.clone());
            let at = issue.path.iter().any(|step| matches!(step, PathSegment::Key(key) if key == KEY));
            if at || issue.message.contains(KEY) {
                Ok(())
            } else {
                Err(format!("the issue does not name the key: {issue}").into())
            }
        }
    }
}

pub(super) fn no_secret(kit: &mut Kit<'_>) -> Result<(), Fault> {
    let secrets = kit.harness.secrets();
    if secrets.is_empty() {
        return Err(Fault::Skipped("the configuration has no secret"));
    }
    let printed = kit.harness.printed();
    for text in kit.texts.iter().chain(&printed) {
        if let Some(secret) = secrets.iter().find(|secret| text.contains(secret.as_str())) {
            return Err(format!("a text holds a secret: {}", text.replace(secret.as_str(), "[secret]")).into());
        }
    }
    Ok(())
}
