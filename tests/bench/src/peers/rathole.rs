//! rathole: TCP ports forwarded through one TCP connection for each, encrypted by Noise NK.

use anyhow::Result;
use culvert_lab::process::Process;
use culvert_model::key::PrivateKey;

use super::{Ends, Peer, Ports, Program, inside, installed};
use crate::site::{FETCH, GATEWAY, HTTP2, Site, UPLOAD};

const SERVICES: [(&str, u16); 3] = [("fetch", FETCH), ("upload", UPLOAD), ("http2", HTTP2)];

pub(super) fn start(name: &str, site: &Site, ports: &Ports) -> Result<Peer> {
    let program = installed("rathole")?;
    let key = PrivateKey::generate();
    let control = format!("{GATEWAY}:{}", ports.0 + 9);
    let noise = |field: &str, value: &str| format!("type = \"noise\"\n[SIDE.transport.noise]\n{field} = \"{value}\"\n");
    let mut server = format!(
        "[server]\nbind_addr = \"{control}\"\ndefault_token = \"bench\"\n[server.transport]\n{}",
        noise("local_private_key", key.to_base64().as_ref()).replace("SIDE", "server")
    );
    let mut client = format!(
        "[client]\nremote_addr = \"{control}\"\ndefault_token = \"bench\"\n[client.transport]\n{}",
        noise("remote_public_key", &key.public_key().to_string()).replace("SIDE", "client")
    );
    for (place, (service, port)) in SERVICES.into_iter().enumerate() {
        let visible = usize::from(ports.0) + place;
        server += &format!("[server.services.{service}]\nbind_addr = \"127.0.0.1:{visible}\"\n");
        client += &format!("[client.services.{service}]\nlocal_addr = \"127.0.0.1:{port}\"\n");
    }
    let mut ends = Vec::new();
    for (side, flag, text) in [(&site.gateway, "--server", server), (&site.private, "--client", client)] {
        let config = site.file(&format!("rathole{flag}.toml"));
        std::fs::write(&config, text)?;
        let mut command = inside(side, &program);
        command.env("RUST_LOG", "error").arg(flag).arg(&config);
        ends.push(Program::Process(Process::start(name, command)?));
    }
    let private = ends.split_off(1);
    Peer::at(name, ports, Ends { gateway: ends, private })
}
