// One implementation for both module systems, so that `instanceof` holds across them.
import nextHop from './index.js';

export const { NextHop, NextHopError, WholeResponse, lookUpAll, warmUp } = nextHop;
