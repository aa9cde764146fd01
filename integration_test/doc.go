// Package integration holds the tests of the whole product, and nothing else: the program
// as it is built, a real nats-server, and a Zulip that obeys Zulip's rules (package
// zulipsim). What one package promises is tested beside it; here is tested what only all
// of them together can keep: that each event is stored once, in order and byte for byte,
// whoever is killed, and that an operator can read in the log what happened.
//
// The nats-server runs inside the test process, or as a process that can be killed
// (package natstest). The bridge is the program itself (package harness), except where a
// test needs no process: then the same parts run inside the test. Every test runs its own
// servers, so all of them run at the same time.
//
//	go test ./integration_test                                       all tests
//	go test ./integration_test -run TestKill -kills 1000 -v          more kills, and their figures
//	go test ./integration_test -run TestKill -seed 4711              the same kills again
//
// How fast it is, and how large it becomes, is measured by bench, not here.
//
// world_test.go sets up Zulip and a realm's place on NATS, ledger_test.go compares what
// the stream holds with what Zulip had put in its queues; both are used by every test.
// The other files are named after what they put the product through.
package integration
