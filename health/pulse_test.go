package health

import (
	"context"
	"testing"
	"testing/synctest"
	"time"
)

func TestPulse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var p Pulse
		late := func(want time.Duration) {
			t.Helper()
			if got := p.Late(); got != want {
				t.Errorf("it is late by %v, want %v", got, want)
			}
		}
		time.Sleep(time.Hour)
		late(0) // it has not begun
		ctx := WithPulse(t.Context(), &p)
		Waits(ctx, 90*time.Second)
		time.Sleep(90 * time.Second)
		late(0)
		time.Sleep(time.Minute)
		late(time.Minute)
		Waits(t.Context(), time.Hour)                  // not of the loop
		Waits(WithoutPulse(ctx), 2*time.Hour)          // beside it
		Waits(WithPulse(ctx, new(Pulse)), 2*time.Hour) // of another loop
		late(time.Minute)
		below, cancel := context.WithCancel(context.WithoutCancel(ctx))
		defer cancel()
		Waits(below, time.Hour)
		late(0)
		Waits(ctx, time.Second) // the last word counts, not the longest
		time.Sleep(time.Minute)
		late(59 * time.Second)
		p.Stop()
		late(0)
	})
}
