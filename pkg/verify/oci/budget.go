package oci

import (
	"context"
	"sync/atomic"
)

// Budget bounds what is asked of registries for one image, or for whatever else shares it by way of its context.
type Budget struct {
	requests, bytes atomic.Int64
}

// Defaults of a Budget.
const (
	DefaultRequests = 512
	DefaultBytes    = 64 << 20
)

// NewBudget returns a budget; 0 stands for the defaults.
func NewBudget(requests int, bytes int64) *Budget {
	b := &Budget{}
	if requests == 0 {
		requests = DefaultRequests
	}
	if bytes == 0 {
		bytes = DefaultBytes
	}
	b.requests.Store(int64(requests))
	b.bytes.Store(bytes)
	return b
}

type budgetKey struct{}

// WithBudget lets all calls under the returned context share b. Without, each call of a Source has a new one.
func WithBudget(ctx context.Context, b *Budget) context.Context {
	return context.WithValue(ctx, budgetKey{}, b)
}

// budgeted returns a context that has a budget, and that.
func budgeted(ctx context.Context, requests int, bytes int64) context.Context {
	if _, ok := ctx.Value(budgetKey{}).(*Budget); ok {
		return ctx
	}
	return WithBudget(ctx, NewBudget(requests, bytes))
}

func budgetOf(ctx context.Context) *Budget {
	b, _ := ctx.Value(budgetKey{}).(*Budget)
	return b
}

// request takes one request.
func (b *Budget) request() error {
	if b != nil && b.requests.Add(-1) < 0 {
		return tooLarge("more registry requests than one image may cost")
	}
	return nil
}

// left returns up to max bytes that may still be read.
func (b *Budget) left(max int64) int64 {
	if b == nil {
		return max
	}
	return min(max, b.bytes.Load())
}

// spend takes n bytes that were read.
func (b *Budget) spend(n int64) error {
	if b != nil && b.bytes.Add(-n) < 0 {
		return tooLarge("more bytes than one image may cost")
	}
	return nil
}
