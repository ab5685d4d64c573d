//! What meshd and planet have in common as services: a start that is tried again ([`start`]), and a log
//! that nobody else can fill ([`log`]).

pub mod log;
pub mod start;
