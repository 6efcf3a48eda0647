package sign

import (
	"context"
	"io"
	"net/http"
)

// boundTransport ends requests with ctx: sigstore-go 1.3 sends those to the CA and the timestamp authority without a
// context.
type boundTransport struct {
	ctx  context.Context //nolint:containedctx // the client between us takes no other way
	base http.RoundTripper
}

func bind(ctx context.Context, base http.RoundTripper) http.RoundTripper {
	if base == nil {
		base = http.DefaultTransport
	}
	return boundTransport{ctx: ctx, base: base}
}

func (t boundTransport) RoundTrip(req *http.Request) (*http.Response, error) {
	ctx, cancel := context.WithCancel(req.Context())
	stop := context.AfterFunc(t.ctx, cancel)
	resp, err := t.base.RoundTrip(req.WithContext(ctx))
	if err != nil {
		stop()
		cancel()
		return nil, err
	}
	resp.Body = &boundBody{ReadCloser: resp.Body, end: func() { stop(); cancel() }}
	return resp, nil
}

// boundBody releases the request's context when its answer is closed.
type boundBody struct {
	io.ReadCloser
	end func()
}

func (b *boundBody) Close() error {
	defer b.end()
	return b.ReadCloser.Close()
}
