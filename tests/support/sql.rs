//! A blocking SQL connection.

use std::path::Path;
use std::sync::OnceLock;
use std::time::Duration;

use bytes::Bytes;
use futures_util::SinkExt;
use tokio::runtime::Runtime;
use tokio_postgres::{Client, Config, NoTls, SimpleQueryMessage};

/// Values as text, as psql shows them.
pub type Row = Vec<Option<String>>;

/// One connection.
pub struct Sql {
    client: Client,
}

fn runtime() -> &'static Runtime {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    RUNTIME.get_or_init(|| {
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime")
    })
}

impl Sql {
    /// Connects over the unix socket, as a superuser.
    pub fn superuser(sockets: &Path, port: u16, database: &str) -> Result<Sql, tokio_postgres::Error> {
        let mut config = Config::new();
        config
            .host_path(sockets)
            .port(port)
            .user("postgres")
            .dbname(database)
            .application_name("walgate-e2e")
            .connect_timeout(Duration::from_secs(20));
        runtime().block_on(async {
            let (client, connection) = config.connect(NoTls).await?;
            tokio::spawn(connection);
            Ok(Sql { client })
        })
    }

    /// Whether the connection is gone.
    pub fn is_closed(&self) -> bool {
        self.client.is_closed()
    }

    /// Runs one or several statements; the rows of all of them.
    pub fn try_run(&self, statements: &str) -> Result<Vec<Row>, tokio_postgres::Error> {
        let messages = runtime().block_on(self.client.simple_query(statements))?;
        let rows = messages.iter().filter_map(|message| match message {
            SimpleQueryMessage::Row(row) => Some((0..row.len()).map(|i| row.get(i).map(str::to_owned)).collect()),
            _ => None,
        });
        Ok(rows.collect())
    }

    /// As [`Sql::try_run`]; an error fails the test.
    #[track_caller]
    pub fn run(&self, statements: &str) -> Vec<Row> {
        match self.try_run(statements) {
            Ok(rows) => rows,
            Err(error) => panic!("{statements}: {}", explain(&error)),
        }
    }

    /// The first column of the first row.
    #[track_caller]
    pub fn value(&self, statement: &str) -> String {
        match self.run(statement).into_iter().next().and_then(|row| row.into_iter().next()) {
            Some(Some(value)) => value,
            other => panic!("{statement}: no value but {other:?}"),
        }
    }

    /// `COPY ... FROM STDIN` with these bytes.
    #[track_caller]
    pub fn copy_in(&self, statement: &str, data: &str) {
        let copied: Result<u64, tokio_postgres::Error> = runtime().block_on(async {
            let sink = self.client.copy_in(statement).await?;
            let mut sink = std::pin::pin!(sink);
            sink.send(Bytes::copy_from_slice(data.as_bytes())).await?;
            sink.finish().await
        });
        if let Err(error) = copied {
            panic!("{statement}: {}", explain(&error));
        }
    }
}

/// The server's own words, with its code.
pub fn explain(error: &tokio_postgres::Error) -> String {
    match error.as_db_error() {
        Some(db) => format!("{} ({})", db.message(), db.code().code()),
        None => format!("{error}: {:?}", std::error::Error::source(error).map(ToString::to_string)),
    }
}
