//! `culvert-relay`: the process beside the gateway.
#![allow(dead_code, unused_variables)]

mod access_log;
mod cli;
mod command;
mod config;
mod enrol;
mod identity;
mod lane;
mod metrics;
mod pick;
mod registry;
mod router;
mod sessions;
mod upstream;

fn main() {}
