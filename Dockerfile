# Builds one of the services: docker build --build-arg SERVICE=api .
FROM node:24-trixie-slim AS build
WORKDIR /app
COPY .npmrc package.json package-lock.json ./
COPY packages/next-hop/package.json packages/next-hop/
# The optional dependencies only provide Node 24 on machines with an older version. The image already has it.
RUN --mount=type=cache,target=/root/.npm npm ci --omit=optional
COPY tsconfig.json tsconfig.build.json ./
COPY chassis chassis
COPY contract contract
COPY packages packages
COPY services services
RUN npm run build && mkdir /data /compile-cache

# For docker-compose.watch.yml: runs the service from source and reloads it on changes.
FROM build AS dev
ARG SERVICE
# npm writes its logs under HOME.
ENV SERVICE=${SERVICE} LOG_FORMAT=pretty HOME=/tmp
RUN chown -R 65532:65532 dist /data
USER 65532:65532
CMD ["sh", "-c", "exec npm run -s dev:$SERVICE"]

FROM node:24-trixie-slim AS production-dependencies
WORKDIR /app
COPY .npmrc package.json package-lock.json ./
COPY packages/next-hop/package.json packages/next-hop/
RUN --mount=type=cache,target=/root/.npm npm ci --omit=dev --omit=optional

FROM gcr.io/distroless/nodejs24-debian13:nonroot AS runtime
ARG SERVICE
WORKDIR /app
ENV NODE_ENV=production
COPY --from=production-dependencies /app/node_modules node_modules
# node_modules/next-hop is a symbolic link to this folder.
COPY --from=build /app/packages/next-hop/package.json packages/next-hop/
COPY --from=build /app/packages/next-hop/dist packages/next-hop/dist
COPY --from=build /app/dist/chassis chassis
COPY --from=build /app/dist/contract contract
COPY --from=build /app/dist/services/${SERVICE} services/${SERVICE}
# A new named volume inherits the owner of the folder at its mount point.
COPY --from=build --chown=65532:65532 /data /data
# The entrypoint is node, and without a shell CMD cannot contain a variable, so both services start from main.js.
COPY <<EOF main.js
require('./services/${SERVICE}/main.js');
EOF
# V8's compile cache shortens the startup by about a tenth (docs/decisions/0008-hot-path.md). It depends on the version of
# Node, the user id, the CPU features and V8's flags, so the image's own Node writes it, by starting the service once.
COPY --from=build --chown=65532:65532 /compile-cache compile-cache
ENV NODE_COMPILE_CACHE=/app/compile-cache
RUN ["/nodejs/bin/node", "-e", "Object.assign(process.env, { HOST: '127.0.0.1', PORT: '0', ADMIN_PORT: '0', DATABASE_FILE: ':memory:' }); require('./main.js'); setTimeout(process.exit, 500)"]
CMD ["main.js"]
