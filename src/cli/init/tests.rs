use clap::Parser;

use super::*;
use crate::{
    config::{FileSource, Sources, load},
    registry::Registry,
};

#[derive(Parser)]
struct Command {
    #[command(flatten)]
    args: InitArgs,
}

async fn init(arguments: &[&str]) -> (ExitStatus, String) {
    let command = Command::try_parse_from(["init"].iter().chain(arguments)).unwrap();
    let mut out = Vec::new();
    let refused = |_| async { Err(LinkError::new("connection refused")) };
    let status = run(command.args, refused, &mut out).await.unwrap();
    (status, String::from_utf8(out).unwrap())
}

#[tokio::test]
async fn it_prints_the_sql_and_a_configuration_that_loads() {
    let (status, text) = init(&["--with-table"]).await;
    assert_eq!(status, ExitStatus::Ok);
    insta::assert_snapshot!(text);
    let (_, yaml) = init(&["--only", "yaml", "--table", "\"My App\".events", "--publication", "null"]).await;
    let file = FileSource::Text("walgate.yaml".to_owned(), yaml);
    let read = load(Sources { file, ..Sources::default() }, &Registry::built_in()).unwrap();
    assert_eq!(read.config.outbox.table, "\"My App\".events");
    assert_eq!(read.config.source.publication, "null");
    assert_eq!(read.sinks[0].kind, "stdout");
    let (_, sql) = init(&["--only", "sql"]).await;
    assert!(sql.contains("CREATE PUBLICATION") && sql.contains("walgate.parked") && !sql.contains("sinks:"));
    let (_, sql) = init(&["--only", "sql", "--no-parking"]).await;
    assert!(!sql.contains("walgate.parked"));
}

#[tokio::test]
async fn it_prints_json() {
    let (_, text) = init(&["--json"]).await;
    let document: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert!(document["sql"].as_str().unwrap().contains("CREATE ROLE walgate LOGIN REPLICATION;"));
    assert!(document["config"].as_str().unwrap().contains("slot: walgate"));
}

#[tokio::test]
async fn names_that_cannot_be_are_refused() {
    for arguments in [["--slot", "Wal-Gate"], ["--table", "a.b.c"], ["--role", ""], ["--publication", "a\nb"]] {
        let (status, text) = init(&arguments).await;
        assert_eq!(status, ExitStatus::Configuration, "{text}");
        assert!(text.starts_with("error: `"), "{text}");
    }
}

#[tokio::test]
async fn a_server_that_cannot_be_reached_is_an_error_of_the_environment() {
    let (status, text) = init(&["--apply", "--admin-url", "postgres://postgres:s3cret@db/shop"]).await;
    assert_eq!(status, ExitStatus::Environment);
    assert_eq!(text, "error: cannot connect with --admin-url: connection refused; nothing was changed\n");
    let (_, text) = init(&["--remove", "--json", "--admin-url", "postgres://postgres:s3cret@db/shop"]).await;
    let document: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(document["done"], false);
    assert!(!text.contains("s3cret"));
}

#[test]
fn arguments_that_do_not_go_together_are_refused_and_secrets_are_not_shown() {
    for arguments in [
        &["--apply"][..],
        &["--remove"],
        &["--drop-role"],
        &["--apply", "--remove", "--admin-url", "x"],
        &["--no-parking", "--remove", "--admin-url", "x"],
        &["--apply", "--only", "sql", "--admin-url", "x"],
    ] {
        assert!(Command::try_parse_from(["init"].iter().chain(arguments)).is_err(), "{arguments:?}");
    }
    let command = Command::try_parse_from(["init", "--admin-url", "postgres://a:s3cret@h"]).ok().unwrap();
    assert!(!format!("{:?}", command.args).contains("s3cret"));
}
