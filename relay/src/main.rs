//! `culvert-relay`: the process beside the gateway.
#![allow(dead_code, unused_variables)]

mod cli;
mod command;
mod enrol;
mod identity;
mod registry;

fn main() {}
