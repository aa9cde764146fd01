// Command zulip-nats puts every event that a Zulip account receives on NATS JetStream, once, in order, and as Zulip sent it. See the
// README, and package cli for the commands.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"zulip-nats/cli"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	// The first signal asks for a clean stop. The second one ends the program as if it had no handler.
	context.AfterFunc(ctx, stop)
	os.Exit(cli.Run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}
