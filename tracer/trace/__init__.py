"""The trace format: schema, writer, reader, salvage and checks. Needs only stdlib and pyarrow."""
