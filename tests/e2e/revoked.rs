//! G8: credentials that are taken away from a walgate that works. The sink is down with the reason, nothing is lost or
//! settled by it, and it goes on once they are given back.

use crate::rig::Rig;
use crate::support::wait::{DEADLINE, within};
use crate::support::walgate::{Setup, Walgate};

/// The inside of `delivery: { }`.
const IMPATIENT: &str = "timeout: 2s, retry: { initial: 20ms, max: 200ms, connection_max: 200ms }";

/// An event arrives, one is held while the credentials are gone, and arrives when they are back.
fn taken_and_given_back(rig: &Rig, setup: &Setup, take: impl FnOnce(), says: &str, give_back: impl FnOnce()) {
    let mut walgate = Walgate::run(setup);
    let first = rig.insert("k");
    rig.wait_confirmed(&mut walgate, &first);
    take();
    let held = rig.insert("k");
    walgate.wait_log(&["sink down", says]);
    let red = || walgate.metric("walgate_sink_up", &["sink=\"bus\""]) == Some(0.0);
    assert!(within(DEADLINE, red), "it is red");
    rig.assert_not_passed(&held);
    give_back();
    rig.wait_confirmed(&mut walgate, &held);
    walgate.terminate();
    let ended = walgate.wait_for_end(DEADLINE);
    ended.expect(0, &[]);
    assert!(!ended.output().contains("canary"), "{}", ended.output());
}

#[cfg(feature = "nats")]
#[test]
fn g8_nats() {
    use crate::support::nats::NatsServer;
    use crate::support::nats_wire::Login;
    use serde_json::json;

    let users =
        "authorization { users: [ { user: walgate, password: canary-first }, { user: test, password: test } ] }";
    let login = Login { connect: Some(json!({ "user": "test", "pass": "test" })), tls: None };
    let (rig, server) = (Rig::new(), NatsServer::with(users, login));
    server.add_stream("ORDERS", &["orders.>"], json!({}));
    let sink = format!(
        "bus: {{ nats: {{ servers: [\"127.0.0.1:{}\"], subject: orders.all, user: walgate, password: canary-first }}, \
         delivery: {{ {IMPATIENT} }} }}",
        server.port()
    );
    let setup = rig.source().sink(&sink).route("**", "bus");
    let take = || server.reconfigure("canary-first", "canary-second");
    taken_and_given_back(&rig, &setup, take, "does not accept the credentials", || {
        server.reconfigure("canary-second", "canary-first");
    });
    assert_eq!(crate::nats::assert_stored(&rig.committed(), &server.stored("ORDERS")), 0);
}

#[cfg(feature = "rabbitmq")]
#[test]
fn g8_rabbitmq() {
    use crate::support::rabbitmq::Rabbit;

    let (rig, server) = (Rig::new(), Rabbit::shared());
    let vhost = server.vhost();
    let mut wire = server.wire(&vhost);
    wire.declare_queue("orders", &[]);
    let user = format!("revoked-{vhost}");
    server.ctl(&["add_user", &user, "canary-first"]);
    server.ctl(&["set_permissions", "-p", &vhost, &user, "", ".*", ".*"]);
    let sink = format!(
        "bus: {{ rabbitmq: {{ url: \"amqp://{user}:canary-first@127.0.0.1:{}/{vhost}\", routing_key: orders }}, \
         delivery: {{ {IMPATIENT} }} }}",
        server.port()
    );
    let setup = rig.source().sink(&sink).route("**", "bus");
    let take = || {
        server.ctl(&["change_password", &user, "canary-second"]);
        for connection in server.connections(&vhost) {
            server.ctl(&["close_connection", &connection, "revoked"]);
        }
    };
    taken_and_given_back(&rig, &setup, take, "does not accept the credentials", || {
        server.ctl(&["change_password", &user, "canary-first"]);
    });
    assert_eq!(wire.count("orders"), 2);
}

#[cfg(feature = "webhook")]
#[test]
fn g8_webhook() {
    use crate::support::receiver::{SECRET, reply};

    let rig = Rig::new();
    let sink = format!(
        "bus: {{ webhook: {{ url: {:?}, secret: {SECRET:?}, bearer_token: canary-token }}, delivery: {{ {IMPATIENT} }} }}",
        rig.receiver.url()
    );
    let setup = rig.source().sink(&sink).route("**", "bus");
    let take = || rig.receiver.script(|_| reply(401).into());
    taken_and_given_back(&rig, &setup, take, "does not accept the credentials", || rig.receiver.accept_all());
    rig.assert_all();
}
