//! Wire formats of flashpan: host to guest agent, supervisor to VMM.
