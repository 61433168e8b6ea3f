//! `walgate route`: where an event would go, and why.

use std::io::{self, Read, Write};

use anstyle::{AnsiColor, Style};
use bytes::Bytes;
use clap::Args;

use super::{
    ConfigArgs, complain, setup,
    simulate::{Given, GivenError, Outcome, Simulator},
};
use crate::{
    config::{Unrouted, printable},
    error::ExitStatus,
    registry::Registry,
    router::Verdict,
};

/// Arguments of `walgate route`.
#[derive(Debug, Args)]
pub struct RouteArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// The event's type.
    #[arg(long, value_name = "TYPE")]
    event_type: String,
    /// Its ordering key.
    #[arg(long)]
    key: Option<String>,
    /// Its id; the nil UUID where it is left out.
    #[arg(long)]
    id: Option<String>,
    /// A header. May be repeated.
    #[arg(long, value_name = "NAME=VALUE")]
    header: Vec<String>,
    /// A column of the outbox, as PostgreSQL writes its value: `t` for true. May be repeated.
    #[arg(long, value_name = "NAME=VALUE")]
    column: Vec<String>,
    /// A file with the payload; `-` is standard input.
    #[arg(long, value_name = "FILE")]
    payload: Option<String>,
    /// Prints JSON.
    #[arg(long)]
    json: bool,
}

/// Exit status 0: it was shown, whatever becomes of the event; 2: the configuration or the arguments are wrong.
pub fn run(args: &RouteArgs, registry: &Registry) -> ExitStatus {
    let loaded = match setup::load(&args.config, registry) {
        Ok(loaded) => loaded,
        Err(status) => return status,
    };
    let mut simulator = match Simulator::new(&loaded) {
        Ok(simulator) => simulator,
        Err(errors) => return setup::refuse(&errors),
    };
    let outcome = given(args, loaded.config.limits.event.0).and_then(|given| {
        simulator.run(&given).map_err(|GivenError { part, name, message }| {
            let flag = part.trim_end_matches('s').replace('_', "-");
            format!("--{flag}{}: {message}", name.map(|name| format!(" {}", printable(&name, 60))).unwrap_or_default())
        })
    });
    let outcome = match outcome {
        Ok(outcome) => outcome,
        Err(message) => {
            complain(&message);
            return ExitStatus::Configuration;
        }
    };
    let mut out = anstream::stdout();
    let printed = if args.json {
        serde_json::to_writer_pretty(&mut out, &outcome).map_err(io::Error::from).and_then(|()| writeln!(out))
    } else {
        text(&outcome, &mut out)
    };
    if printed.is_ok() { ExitStatus::Ok } else { ExitStatus::Runtime }
}

fn given(args: &RouteArgs, limit: u64) -> Result<Given, String> {
    let pairs = |flag: &str, texts: &[String]| {
        let pair = |text: &String| match text.split_once('=') {
            Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
            _ => Err(format!("`--{flag} {}` has no value: write --{flag} NAME=VALUE", printable(text, 60))),
        };
        texts.iter().map(pair).collect::<Result<Vec<_>, _>>()
    };
    let columns = pairs("column", &args.column)?;
    Ok(Given {
        event_type: args.event_type.clone(),
        id: args.id.clone(),
        key: args.key.clone(),
        headers: pairs("header", &args.header)?,
        columns: columns.into_iter().map(|(name, value)| (name, Some(value))).collect(),
        payload: args.payload.as_deref().map(|path| payload(path, limit)).transpose()?,
    })
}

fn payload(path: &str, limit: u64) -> Result<Bytes, String> {
    let mut bytes = Vec::new();
    let read = match path {
        "-" => io::stdin().lock().take(limit + 1).read_to_end(&mut bytes),
        path => std::fs::File::open(path).and_then(|file| file.take(limit + 1).read_to_end(&mut bytes)),
    };
    match read {
        Err(error) => Err(format!("cannot read the payload from {}: {error}", printable(path, 200))),
        Ok(read) if read as u64 > limit => Err(format!("the payload has more than {limit} bytes, the `limits.event`")),
        Ok(_) => Ok(Bytes::from(bytes)),
    }
}

fn text(outcome: &Outcome, out: &mut dyn Write) -> io::Result<()> {
    let (bold, green, red) = (Style::new().bold(), AnsiColor::Green.on_default(), AnsiColor::Red.on_default().bold());
    let show = |text: &str| printable(text, 200);
    if let Some(why) = &outcome.unusable {
        writeln!(out, "{red}no event{red:#}  {why}")?;
    }
    if let Some(event) = &outcome.event {
        writeln!(out, "{bold}event{bold:#}   {} {}", show(&event.event_type), show(&event.id))?;
        match (&event.key, &event.no_key) {
            (Some(key), _) => writeln!(out, "        key {}", show(key))?,
            (None, Some(why)) => writeln!(out, "        no key: {why}")?,
            (None, None) => writeln!(out, "        no key")?,
        }
        for (name, value) in event.headers.as_object().into_iter().flatten() {
            writeln!(out, "        header {}={}", show(name), show(value.as_str().unwrap_or_default()))?;
        }
    }
    if !outcome.routes.is_empty() {
        writeln!(out)?;
    }
    let name = |route: usize| format!("routes[{route}]");
    let width = |texts: &mut dyn Iterator<Item = usize>| texts.max().unwrap_or(0).min(60);
    let names = width(&mut outcome.routes.iter().map(|answer| name(answer.verdict.route).len()));
    let places = width(&mut outcome.routes.iter().map(|answer| answer.place.chars().count()));
    for answer in &outcome.routes {
        let (mark, style) = match answer.verdict.verdict {
            Verdict::Matched { .. } => ("yes", green),
            _ => ("no ", Style::new()),
        };
        let (route, place, reason) = (name(answer.verdict.route), &answer.place, answer.reason());
        writeln!(out, "{style}{mark}{style:#}     {route:<names$}  {place:<places$}  {reason}")?;
    }
    if let Some(unrouted) = outcome.unrouted {
        let then = match unrouted {
            Unrouted::Drop => "it is dropped, and counted (`unrouted: drop`)",
            Unrouted::DeadLetter => "it is kept in walgate.dead_letters (`unrouted: dead_letter`)",
            Unrouted::Halt => "nothing more is read until a route for it exists (`unrouted: halt`)",
        };
        return writeln!(out, "\n{bold}unrouted{bold:#}: {then}");
    }
    writeln!(out)?;
    for delivery in &outcome.deliveries {
        let fields: Vec<_> = delivery
            .target
            .iter()
            .map(|(name, value)| format!(" {name}={}", show(value.as_str().unwrap_or_default())))
            .collect();
        writeln!(
            out,
            "{bold}->{bold:#}      {} ({}){}, by {}",
            delivery.sink,
            delivery.kind,
            fields.concat(),
            name(delivery.route)
        )?;
        let key = delivery.ordering_key.as_deref().map_or("none".to_owned(), show);
        writeln!(out, "        ordering key {key}, dedup id {}", show(&delivery.dedup_id))?;
        if let Some(rejected) = &delivery.rejected {
            writeln!(out, "        {red}rejected{red:#} ({}): {}", rejected.reason, show(&rejected.message))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;
    use crate::config::{FileSource, Sources, load_with_routes};

    const CONFIG: &str = "
outbox: { columns: { key: aggregate_id, headers: headers }, header_columns: { region: region } }
sinks:
  out: { stdout: {} }
  idle: { discard: {} }
routes:
  - { event_type: 'order.*', to: out }
  - { event_type: ['order.*', 'user.*'], when: { header.region: eu }, to: [out, idle] }
  - { event_type: 'user.*', when: { key: ['1', '2'] }, to: idle }
unrouted: halt
";

    fn shown(given: &Given) -> String {
        let file = FileSource::Text("walgate.yaml".into(), CONFIG.into());
        let sources = Sources { file, ..Sources::default() };
        let loaded = load_with_routes(sources, &Registry::built_in(), &setup::route_faults).unwrap();
        let mut out = Vec::new();
        text(&Simulator::new(&loaded).unwrap().run(given).unwrap(), &mut out).unwrap();
        anstream::adapter::strip_str(&String::from_utf8(out).unwrap()).to_string()
    }

    #[test]
    fn an_event_its_routes_and_its_deliveries() {
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let order = Given {
            event_type: "order.created".into(),
            key: Some("7".into()),
            headers: vec![pair("region", "eu"), pair("trace", "a\u{1b}[31m")],
            ..Given::default()
        };
        let user = Given { event_type: "user.\u{202e}x".into(), ..Given::default() };
        let none = Given { columns: vec![("id".into(), None)], ..user.clone() };
        insta::with_settings!({ prepend_module_to_snapshot => false, omit_expression => true }, {
            insta::assert_snapshot!("route_text", [order, user, none].map(|given| shown(&given)).join("\n---\n"));
        });
    }

    #[test]
    fn the_help() {
        let mut command = crate::cli::Cli::command().mut_args(|arg| arg.hide_env(true));
        command.build();
        let mut help = |name: &str| command.find_subcommand_mut(name).unwrap().render_long_help().to_string();
        insta::with_settings!({ prepend_module_to_snapshot => false, omit_expression => true }, {
            insta::assert_snapshot!("route_help", help("route"));
            insta::assert_snapshot!("test_help", help("test"));
        });
    }
}
