//! One act: services, customers, kills, and the count at the end.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use tokio::net::TcpListener;

use super::{
    Failure, PATIENCE,
    children::Restartable,
    consumers::{Consumer, Tally},
    database::{Database, Server},
    load, service,
    show::{Progress, Show},
};
use crate::cli::fetch;

/// The databases of the two acts.
pub const DATABASES: [&str; 2] = ["walgate_demo_before", "walgate_demo"];

const EMAILS: &str = "confirmation_emails";
const INVENTORY: &str = "inventory_changes";

/// Which act.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    /// The service publishes by itself.
    DualWrite,
    /// The outbox and walgate.
    Outbox,
}

/// How it ended.
#[derive(Clone, Copy, Debug)]
pub struct Outcome {
    /// Orders in the database.
    pub orders: u64,
    /// What the e-mail consumer has.
    pub emails: Tally,
    /// What the inventory consumer has.
    pub inventory: Tally,
    /// SIGKILLs of the order service.
    pub service_kills: u32,
    /// SIGKILLs of walgate.
    pub gateway_kills: u32,
}

impl Outcome {
    /// Messages that should have arrived and never will.
    pub fn vanished(&self) -> u64 {
        self.orders.saturating_sub(self.emails.arrived) + self.orders.saturating_sub(self.inventory.arrived)
    }

    /// Deliveries that came again.
    pub fn repeats(&self) -> u64 {
        self.emails.repeats + self.inventory.repeats
    }
}

/// What an act leaves running.
pub struct Stage<'a> {
    server: &'a Server,
    database: Database,
    orders: Restartable,
    gateway: Option<Restartable>,
    admin: String,
    shop: String,
    consumers: Vec<Consumer>,
    folder: tempfile::TempDir,
}

/// Plays an act. Gives the stage back, still running, where somebody may want to look at it.
pub async fn play<'a>(
    act: Act,
    server: &'a Server,
    orders: u32,
    show: &Show,
) -> Result<(Outcome, Option<Stage<'a>>), Failure> {
    let mut stage = Stage::set(act, server).await?;
    let result = stage.run(orders, show).await;
    match result {
        Ok(outcome) if act == Act::Outbox => Ok((outcome, Some(stage))),
        other => {
            stage.clear().await?;
            other.map(|outcome| (outcome, None))
        }
    }
}

impl<'a> Stage<'a> {
    async fn set(act: Act, server: &'a Server) -> Result<Stage<'a>, Failure> {
        let folder = tempfile::Builder::new()
            .prefix("walgate-demo-")
            .tempdir()
            .map_err(|error| format!("cannot make a temporary folder: {error}"))?;
        let name = DATABASES[usize::from(act == Act::Outbox)];
        let database = server.create(name).await?;
        database.run(walgate_example_orders::SCHEMA).await?;
        let mut consumers = Vec::new();
        for table in [EMAILS, INVENTORY] {
            consumers.push(Consumer::start(&database, table, act == Act::Outbox).await?);
        }
        let (shop, admin) = (free_address().await?, free_address().await?);
        let subscribers: Vec<&str> = consumers.iter().map(|consumer| consumer.url.as_str()).collect();
        let env = vec![
            (service::LISTEN, shop.clone()),
            (service::DATABASE, database.url.clone()),
            (service::SUBSCRIBERS, subscribers.join(" ")),
        ];
        let kind = if act == Act::DualWrite { service::Kind::DualWrite } else { service::Kind::Outbox };
        let mut stage = Stage {
            orders: Restartable::service(kind, env, folder.path())?,
            gateway: None,
            server,
            database,
            admin,
            shop,
            consumers,
            folder,
        };
        if act == Act::Outbox {
            stage.prepare_gateway().await?;
        }
        Ok(stage)
    }

    /// Publication and slot, in this order, and a configuration such as a reader would write.
    async fn prepare_gateway(&mut self) -> Result<(), Failure> {
        self.database
            .run("CREATE PUBLICATION walgate_outbox FOR TABLE outbox_events WITH (publish = 'insert')")
            .await?;
        self.database.run("SELECT pg_create_logical_replication_slot('walgate_demo', 'pgoutput')").await?;
        let config = format!(
            "source: {{ url: \"${{DEMO_DATABASE}}\", slot: walgate_demo, publication: walgate_outbox }}\n\
             sinks:\n\
             \x20 email:     {{ webhook: {{ url: \"{}\", secret: \"${{EMAIL_SECRET}}\" }} }}\n\
             \x20 inventory: {{ webhook: {{ url: \"{}\", secret: \"${{INVENTORY_SECRET}}\" }} }}\n\
             routes:\n\
             \x20 - {{ event_type: order.created, to: [email, inventory] }}\n\
             admin: {{ listen: \"{}\" }}\n",
            self.consumers[0].url, self.consumers[1].url, self.admin
        );
        let path = self.config_path();
        std::fs::write(&path, config).map_err(|error| format!("cannot write {}: {error}", path.display()))?;
        let secret = |index: usize| self.consumers[index].secret.clone().unwrap_or_default();
        let env = vec![
            ("DEMO_DATABASE", self.database.url.clone()),
            ("EMAIL_SECRET", secret(0)),
            ("INVENTORY_SECRET", secret(1)),
        ];
        self.gateway = Some(Restartable::gateway(&path, env, self.folder.path())?);
        Ok(())
    }

    fn config_path(&self) -> PathBuf {
        self.folder.path().join("walgate.yaml")
    }

    async fn run(&mut self, orders: u32, show: &Show) -> Result<Outcome, Failure> {
        self.orders.start()?;
        if let Some(gateway) = &mut self.gateway {
            gateway.start()?;
        }
        let progress = show.progress(u64::from(orders));
        let shop = self.shop.clone();
        tokio::select! {
            placed = load::place_orders(&shop, orders, &progress) => placed?,
            trouble = self.trouble(&progress) => return Err(trouble),
        }
        self.orders.start()?;
        if let Some(gateway) = &mut self.gateway {
            gateway.start()?;
        }
        let outcome = self.settle(&progress).await?;
        drop(progress);
        Ok(outcome)
    }

    /// Kills what runs, now and then, and starts it again. Returns only if that cannot be done.
    async fn trouble(&mut self, progress: &Progress) -> Failure {
        let mut round = 0u32;
        loop {
            tokio::time::sleep(Duration::from_millis(fastrand::u64(150..450))).await;
            round += 1;
            let started = match &mut self.gateway {
                Some(gateway) if round.is_multiple_of(2) => {
                    progress.say("walgate was killed");
                    gateway.kill().await;
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    gateway.start()
                }
                _ => {
                    progress.say("the order service was killed");
                    self.orders.kill().await;
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    self.orders.start()
                }
            };
            if let Err(failure) = started {
                return failure;
            }
        }
    }

    /// Waits until everything has arrived that ever will, and counts.
    async fn settle(&mut self, progress: &Progress) -> Result<Outcome, Failure> {
        progress.say("waiting for the last messages");
        let deadline = Instant::now() + PATIENCE;
        loop {
            let outcome = self.count().await?;
            let Some(gateway) = &mut self.gateway else {
                // A message that was not sent at once is never sent: two seconds are generous.
                tokio::time::sleep(Duration::from_secs(2)).await;
                return self.count().await;
            };
            if outcome.vanished() == 0 || Instant::now() > deadline {
                return Ok(outcome);
            }
            if gateway.has_ended() {
                return Err(format!("walgate has ended by itself; its last words:\n{}", gateway.last_words()));
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    async fn count(&self) -> Result<Outcome, Failure> {
        Ok(Outcome {
            orders: self.database.count("SELECT count(*) FROM orders").await?,
            emails: self.consumers[0].tally(&self.database).await?,
            inventory: self.consumers[1].tally(&self.database).await?,
            service_kills: self.orders.kills(),
            gateway_kills: self.gateway.as_ref().map_or(0, Restartable::kills),
        })
    }

    /// Keeps everything up until Ctrl-C.
    pub async fn linger(self, show: &Show) -> Result<(), Failure> {
        show.title("Everything stays up until Ctrl-C. Try:");
        let order = "INSERT INTO outbox_events (event_type, payload) VALUES ('order.created', \
                     jsonb_build_object('order_id', gen_random_uuid()))";
        show.line(&format!("  {} -c \"{order}\"", self.server.psql(&self.database)));
        show.line(&format!("  {} -c \"SELECT * FROM {EMAILS} LIMIT 5\"", self.server.psql(&self.database)));
        show.line(&format!("  curl http://{}/status", self.admin));
        show.line(&format!("  walgate status --admin {}", self.admin));
        show.line(&format!("  cat {}", self.config_path().display()));
        show.line(&format!(
            "  curl -X POST http://{}/orders -H 'content-type: application/json' \
             -d '{{\"id\":\"00000000-0000-4000-8000-000000000001\",\"customer\":\"me\",\"item\":\"book\",\"quantity\":1}}'",
            self.shop
        ));
        // Reached while nobody presses Ctrl-C: that ends the whole story.
        loop {
            tokio::time::sleep(Duration::from_secs(3600)).await;
            let _ = fetch::get(&self.admin, "/livez").await;
        }
    }

    /// Ends its processes, and removes what it made on a given server.
    pub async fn clear(mut self) -> Result<(), Failure> {
        if let Some(gateway) = &mut self.gateway {
            gateway.stop().await;
        }
        self.orders.kill().await;
        self.consumers.clear();
        if !self.server.is_own() {
            self.server.remove(&self.database.name).await?;
        }
        Ok(())
    }
}

/// A port that is free now. The services are restarted on the same one, so they cannot choose for themselves.
async fn free_address() -> Result<String, Failure> {
    let listener = TcpListener::bind("127.0.0.1:0").await.map_err(|error| error.to_string())?;
    listener.local_addr().map(|address| address.to_string()).map_err(|error| error.to_string())
}
