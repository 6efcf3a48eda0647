package rekor2

import (
	"context"
	"errors"
	"net/http"
	"strconv"

	rekorv1 "github.com/sigstore/protobuf-specs/gen/pb-go/rekor/v1"
	rekorpb "github.com/sigstore/rekor-tiles/v2/pkg/generated/protobuf"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

// Register puts dev.sigstore.rekor.v2.Rekor on g. Only CreateEntry is served over gRPC, as upstream does.
func (h *Handler) Register(g grpc.ServiceRegistrar) { rekorpb.RegisterRekorServer(g, service{h: h}) }

type service struct {
	rekorpb.UnimplementedRekorServer
	h *Handler
}

// CreateEntry is POST /api/v2/log/entries over gRPC.
func (s service) CreateEntry(ctx context.Context, req *rekorpb.CreateEntryRequest) (*rekorv1.TransparencyLogEntry, error) {
	started := s.h.opts.Now()
	entry, err := s.h.createEntry(ctx, authority(ctx), req)
	httpStatus := http.StatusCreated
	if err != nil {
		httpStatus, err = s.fail(ctx, err)
	}
	s.h.metrics.observe("CreateEntry", "gRPC", httpStatus, -1, s.h.opts.Now().Sub(started))
	s.h.metrics.called("CreateEntry", proto.Size(req))
	return entry, err
}

func (s service) fail(ctx context.Context, err error) (int, error) {
	httpStatus, code, reason, text := outcome(err)
	s.h.report(ctx, httpStatus, reason, err, "method", "gRPC", "path", "CreateEntry", "code", code.String())
	var conflict conflictError
	if errors.As(err, &conflict) {
		// Without a transport (in tests) there is nobody to tell.
		_ = grpc.SetHeader(ctx, metadata.Pairs(indexHeader, strconv.FormatUint(conflict.index, 10)))
	}
	return httpStatus, status.Error(code, text)
}
