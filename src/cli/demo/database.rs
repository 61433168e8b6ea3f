//! Where the story's databases are.

use std::path::Path;

use tokio_postgres::{Client, Config, NoTls};

use super::{Failure, postgres::Cluster};

/// A server, of our own or given.
pub struct Server {
    config: Config,
    url: String,
    cluster: Option<Cluster>,
}

/// One database of the story.
#[derive(Clone)]
pub struct Database {
    config: Config,
    /// Its URL, as the services and walgate take it.
    pub url: String,
    /// Its name.
    pub name: String,
}

impl Server {
    /// Starts a server of our own.
    pub fn start() -> Result<Self, Failure> {
        let cluster = Cluster::start()?;
        let mut config = Config::new();
        config.host_path(cluster.socket_folder()).user("postgres").dbname("postgres");
        let url = format!("postgres://postgres@/postgres?host={}", percent(cluster.socket_folder()));
        Ok(Server { config, url, cluster: Some(cluster) })
    }

    /// Uses a server that runs already.
    pub fn given(url: &str) -> Result<Self, Failure> {
        let config: Config = url.parse().map_err(|error| format!("--postgres-url cannot be read: {error}"))?;
        if !url.starts_with("postgres") {
            return Err("--postgres-url is to be a URL: postgres://user:password@host:port/postgres".to_owned());
        }
        Ok(Server { config, url: url.to_owned(), cluster: None })
    }

    /// What it is, in a few words.
    pub fn description(&self) -> String {
        match &self.cluster {
            Some(cluster) => {
                format!("PostgreSQL {} in {}", cluster.version(), cluster.socket_folder().display())
            }
            None => "the given PostgreSQL".to_owned(),
        }
    }

    /// How a person connects to a database of it.
    pub fn psql(&self, database: &Database) -> String {
        match &self.cluster {
            Some(cluster) => format!("psql -h {} -U postgres {}", cluster.socket_folder().display(), database.name),
            None => format!("psql (on your server) -d {}", database.name),
        }
    }

    /// Makes a database, empty; one that an interrupted demo left there goes first.
    pub async fn create(&self, name: &str) -> Result<Database, Failure> {
        self.remove(name).await?;
        let client = connect(&self.config).await?;
        sql(&client, &format!("CREATE DATABASE {name}")).await?;
        let mut config = self.config.clone();
        config.dbname(name);
        Ok(Database { config, url: with_database(&self.url, name), name: name.to_owned() })
    }

    /// Drops a database with its slots, where it exists.
    pub async fn remove(&self, name: &str) -> Result<(), Failure> {
        let client = connect(&self.config).await?;
        let slots =
            format!("SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE database = '{name}'");
        let end = format!(
            "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE database = '{name}' AND active"
        );
        sql(&client, &end).await?;
        let mut left = 50;
        while let Err(error) = sql(&client, &slots).await {
            left -= 1;
            if left == 0 {
                return Err(error);
            }
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
        sql(&client, &format!("DROP DATABASE IF EXISTS {name} WITH (FORCE)")).await
    }

    /// Whether it goes away by itself.
    pub fn is_own(&self) -> bool {
        self.cluster.is_some()
    }
}

impl Database {
    /// A connection.
    pub async fn connect(&self) -> Result<Client, Failure> {
        connect(&self.config).await
    }

    /// One number.
    pub async fn count(&self, query: &str) -> Result<u64, Failure> {
        let client = self.connect().await?;
        let row = client.query_one(query, &[]).await.map_err(|error| explain(&error))?;
        let count: i64 = row.try_get(0).map_err(|error| explain(&error))?;
        Ok(u64::try_from(count).unwrap_or(0))
    }

    /// Runs statements.
    pub async fn run(&self, statements: &str) -> Result<(), Failure> {
        sql(&self.connect().await?, statements).await
    }
}

async fn connect(config: &Config) -> Result<Client, Failure> {
    let (client, connection) = config.connect(NoTls).await.map_err(|error| explain(&error))?;
    tokio::spawn(connection);
    Ok(client)
}

async fn sql(client: &Client, statements: &str) -> Result<(), Failure> {
    client.batch_execute(statements).await.map_err(|error| explain(&error))
}

fn explain(error: &tokio_postgres::Error) -> Failure {
    match error.as_db_error() {
        Some(said) => format!("PostgreSQL said: {}", said.message()),
        None => format!("PostgreSQL: {error}"),
    }
}

/// The same URL with another database.
fn with_database(url: &str, name: &str) -> String {
    let (base, query) = url.split_once('?').map_or((url, None), |(base, query)| (base, Some(query)));
    let (scheme, rest) = base.split_once("://").unwrap_or(("postgres", base));
    let authority = rest.split_once('/').map_or(rest, |(authority, _)| authority);
    let query = query.map_or_else(String::new, |query| format!("?{query}"));
    format!("{scheme}://{authority}/{name}{query}")
}

fn percent(path: &Path) -> String {
    path.to_string_lossy().replace('%', "%25").replace('/', "%2F")
}

#[cfg(test)]
mod tests {
    use super::with_database;

    #[test]
    fn a_url_gets_another_database() {
        assert_eq!(
            with_database("postgres://u:p@h:5/postgres?sslmode=disable", "x"),
            "postgres://u:p@h:5/x?sslmode=disable"
        );
        assert_eq!(with_database("postgres://h", "x"), "postgres://h/x");
        assert_eq!(
            with_database("postgres://postgres@/postgres?host=%2Ftmp", "x"),
            "postgres://postgres@/x?host=%2Ftmp"
        );
    }
}
